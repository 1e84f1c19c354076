"""How well candidate images explain an observation, several candidates for all of the client's images at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _NormBase

from shadow_defense.attacks.adaptive.expectation import expected_training
from shadow_defense.attacks.joint_search import RestartLosses
from shadow_defense.attacks.local_steps import SimulatedTraining, simulate_training
from shadow_defense.attacks.objectives import Matching, cosine_distance, direction_of, distance_from_direction
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.observed_statistics import NOTHING_IN_THE_BUFFERS, buffer_momentum, observed_statistics
from shadow_defense.attacks.optimiser_rules import GRADIENT_ITSELF
from shadow_defense.attacks.priors import average_statistics, pulled_no_harder
from shadow_defense.attacks.target import Beyond, matching_target
from shadow_defense.models.batchnorm import (
    BatchStatistics,
    BatchStatisticsRecorder,
    step_weights,
)
from shadow_defense.models.image_priors import statistics_distance
from shadow_defense.models.simulated_gradient import SimulatedGradient
from shadow_defense.models.update_losses import DistanceFromDirection, UpdateLoss

ImagePrior = Callable[[Tensor], Tensor]


def can_be_mapped(model: nn.Module) -> bool:
    """Whether ``torch.func.vmap`` differentiates ``model`` rightly.

    Second derivatives of layer norm, and of batch and instance norm by the batch's own statistics, come out wrong
    there, and silently (torch 2.13; pytorch/functorch issue 534). Group norm is right.
    """
    return not any(
        isinstance(layer, nn.LayerNorm)
        or (isinstance(layer, _NormBase) and (layer.training or layer.running_mean is None))
        for layer in model.modules()
    )


def mapped_constants(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters as ``torch.func.vmap`` takes them: with weights channels last it gives wrong gradients, silently."""
    return {name: tensor.detach().contiguous() for name, tensor in parameters.items()}


class MatchingObjective:
    """``D(U(x), U*) + prior(x) + b sum_BN (||mu - mu*||_2 + ||var - var*||_2)`` of each candidate x.

    Use it in a ``with`` block: hooks on the observed model are registered once and removed at its end.

    Args:
        matching: D, which is fitted to the defense where the observation says how.
        prior: of one candidate's normalised images (n, c, h, w), already weighted.
        relative_prior: ``D (1 + prior)^n`` in place of ``D + prior``: the prior fades as D does. Of an update that is
            known to be one step of SGD n is the number of its images, each with a factor of its own; of others, which
            are matched less closely, it is 1. The number says how many times as hard as D each factor may move the
            images, at most (:func:`~shadow_defense.attacks.priors.pulled_no_harder`). None: ``D + prior``.
        longest_unroll, beyond: local steps up to which the client's training is unrolled, and what becomes of more.
        at_once: candidates simulated in one batch (``torch.func.vmap``), at so many times the memory; what a batch
            gives differs from what its candidates give alone by rounding. 1, wherever the model cannot be mapped
            (:func:`can_be_mapped`), and on a processor where differences are taken
            (:class:`~shadow_defense.models.simulated_gradient.SimulatedGradient`), of which a batch takes none and
            would gain less: one after the other.
        batch_norm: b; above 0 the attacker reads the uploaded buffers.

    Attributes:
        target: what is matched, the labels, and what had to be assumed.
    """

    def __init__(
        self,
        observation: Observation,
        *,
        matching: Matching,
        prior: ImagePrior,
        longest_unroll: int,
        beyond: Beyond = "averaged",
        relative_prior: float | None = None,
        at_once: int = 1,
        batch_norm: float = 0.0,
    ) -> None:
        self.target = matching_target(observation, longest_unroll, beyond)
        self._notes = [*self.target.notes, *observation.matching.notes]
        self._observation, self._matching, self._prior = observation, observation.matching.fitted(matching), prior
        self._local, self._observed = self.target.local, self.target.observed
        self._of_gradient: UpdateLoss | None = None
        if self._matching is cosine_distance and self._local.steps == 1 and self._local.optimiser == "sgd":
            # No length counts: neither is the gradient scaled nor the observed update measured in every iteration.
            self._matching = distance_from_direction
            self._observed = [-tensor for tensor in direction_of(self._observed)]
            self._local = replace(self._local, learning_rate=GRADIENT_ITSELF)
            one_step = not self._local.weight_decay and self.target.sent == tuple(self.target.parameters)
            if one_step and observation.matching.draws == 1:
                self._of_gradient = DistanceFromDirection(self._observed)
        self._at_once = at_once if can_be_mapped(observation.model) else 1
        self._batch_norm = batch_norm
        plain = observation.update.steps == 1 and self._local.optimiser == "sgd"
        self._factors = len(self.target.labels) if plain else 1
        self._relative_prior = relative_prior
        self._statistics: dict[str, BatchStatistics] | None = None
        self._recorder = BatchStatisticsRecorder(observation.model)
        self._gradient = SimulatedGradient(
            observation.model, self.target.parameters, self.target.buffers, observation.loss_fn, self._recorder
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed, and how it was differentiated where that took longer, in words."""
        return (*self._notes, *self._gradient.notes)

    def __enter__(self) -> MatchingObjective:
        if self._batch_norm:
            self._recorder.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._recorder.__exit__(*reason)

    def __call__(self, candidates: Float[Tensor, "r n c h w"]) -> RestartLosses:
        """The losses of r candidates, on the graph; the client is simulated once for each."""
        if self.target.surrogate is not None:
            still = candidates.detach()
            self.target.surrogate.follow(lambda: torch.stack([self._alone(each)[1].detach() for each in still]).mean())
        alone = candidates.device.type == "cpu" and self.target.local.steps == 1 and not self._gradient.exact
        parts = [self._together(part) for part in candidates.split(1 if alone else self._at_once)]
        totals, matched = zip(*parts, strict=True)
        return RestartLosses(torch.cat(totals), torch.cat(matched).detach())

    def _together(self, candidates: Float[Tensor, "r n c h w"]) -> tuple[Tensor, Tensor]:
        target = self.target
        if len(candidates) == 1:
            total, matched = self._alone(candidates[0])
            return total.unsqueeze(0), matched.unsqueeze(0)
        parameters = mapped_constants(target.parameters)
        buffers = {name: tensor.expand(len(candidates), *tensor.shape) for name, tensor in target.buffers.items()}

        def losses(images: Tensor, buffers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            return self._losses(images, buffers, parameters, mapped=True)

        total, matched = vmap(losses, randomness="different")(candidates, buffers)
        return total, matched

    def _alone(self, images: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
        return self._losses(images, self.target.buffers, self.target.parameters, mapped=False)

    def _losses(
        self,
        images: Float[Tensor, "n c h w"],
        buffers: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        *,
        mapped: bool,
    ) -> tuple[Tensor, Tensor]:
        smooth = images
        if self._relative_prior is not None:
            images, smooth = pulled_no_harder(images, self._relative_prior * self._factors)
        if self._of_gradient and not mapped and not self._gradient.exact:
            batch = slice(self._local.batch_size)
            matched, seen = self._gradient.loss(images[batch], self.target.labels[batch], self._of_gradient)
            statistics = [seen]
        else:
            simulated = self._simulated(images, buffers, parameters, mapped)
            matched, statistics = self._matching(simulated.update, self._observed), simulated.statistics
        prior = self._prior(smooth)
        total = matched + prior if self._relative_prior is None else matched * (1 + prior) ** self._factors
        if self._batch_norm:
            if self._statistics is None:
                self._statistics = observed_statistics(self._observation, statistics[0])
                if not self._statistics:
                    self._notes.append(NOTHING_IN_THE_BUFFERS)
            if self._statistics:
                weights = step_weights(buffer_momentum(self._observation), len(statistics))
                ours = average_statistics(statistics, weights)
                total = total + self._batch_norm * statistics_distance(ours, self._statistics, images)
        return total, matched

    def _simulated(
        self,
        images: Float[Tensor, "n c h w"],
        buffers: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        mapped: bool,
    ) -> SimulatedTraining:
        observation, target = self._observation, self.target
        simulate = partial(
            simulate_training,
            observation.model,
            parameters,
            buffers,
            images,
            target.labels,
            observation.loss_fn,
            self._local,
            self._recorder,
            target.sent,
            last=target.last,
            mapped=mapped,
            gradient=self._gradient,
        )
        return expected_training(simulate, observation.matching.draws)
