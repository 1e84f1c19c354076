"""GradInversion (Yin et al. 2021; docs/attacks.md): several seeds at once, drawn to what they agree on."""

from __future__ import annotations

import time
from functools import partial

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.consensus import consensus
from shadow_defense.attacks.joint_search import RestartLosses, inside, search_jointly
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import matching
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import anisotropic_variation, mean_norm
from shadow_defense.attacks.search import cosine_schedule
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class GroupConsistency(BaseModel):
    """The attack's settings; the defaults are the published ones, but for fewer iterations and the group's weight.

    Published weights belong to absolute squares on ResNet-50. Beside relative ones a group of 0.01 holds all seeds at
    their blurred mean: a LeNet on one face of 16 px gave 17.8 dB with it, 22.6 dB at 0.001 and 39.6 dB without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: int = Field(
        2000, ge=1, le=1_000_000, description="Adam iterations, which all seeds take together; published: 20000"
    )
    seeds: int = Field(4, ge=2, le=1024, description="random starts that are optimised together")
    seeds_at_once: int = Field(
        8,
        ge=1,
        le=1024,
        description="seeds simulated in one batch, at so many times the memory; 1: one after the other",
    )
    learning_rate: float = Field(0.1, gt=0, description="of Adam, on normalised images")
    matching: str = Field("squares", description="matching term: squares, cosine or layers")
    batch_norm: float = Field(0.1, ge=0, description="weight of the batch-norm statistics")
    total_variation: float = Field(1e-4, ge=0, description="weight of the smoothness prior")
    norm: float = Field(1e-6, ge=0, description="weight of the images' norm")
    group: float = Field(
        1e-4, ge=0, description="weight of the distance from the consensus; published: 0.01, on absolute squares"
    )
    group_from: float = Field(0.1, ge=0, le=1, description="share of the iterations before there is a consensus")
    group_every: int = Field(100, ge=1, le=1_000_000, description="iterations between two consensus images")
    furthest_shift: int = Field(
        0, ge=0, le=16, description="pixels by which seeds are registered to their mean; 0: the plain mean"
    )
    energy_noise: float = Field(0.2, ge=0, description="noise after each step, in units of the learning rate")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    @property
    def needs(self) -> frozenset[Knowledge]:
        """The learning rate, since squares depend on the update's length, and the buffers, for the statistics."""
        return frozenset({"local training", "buffers"} if self.batch_norm else {"local training"})

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: all seeds take one together."""
        return self.iterations

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update and its batch-norm buffers, from noise.

        Minimises, over all seeds s at once, ``||U(x_s) - U*||^2 / ||U*||^2 + b sum_BN (||mu - mu*||_2 +
        ||var - var*||_2) + c TV(x_s) + d mean ||x_s||_2 + e mean ||x_s - E||_2``, where E is what the seeds agree on
        (:func:`consensus`), drawn up anew every ``group_every`` iterations. Each seed's best iterate is chosen without
        the last term, which changes on the way, and the seed by the matching term alone. Departures: squares are
        relative, so that weights carry over models; equal labels are put in the same order before the mean.

        Raises:
            ThreatModelError: where local training or buffers are not granted.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "gradinversion-group")

        def image_prior(images: Tensor) -> Tensor:
            return self.total_variation * anisotropic_variation(images) + self.norm * mean_norm(images)

        objective = MatchingObjective(
            observation,
            matching=matching(self.matching),
            prior=image_prior,
            longest_unroll=self.longest_unroll,
            at_once=self.seeds_at_once,
            batch_norm=self.batch_norm,
        )
        shape = (len(objective.target.labels), *observation.image_shape)
        draws = [named_generator(seed, "gradinversion group", each) for each in range(self.seeds)]
        low, high = observation.box
        starts = torch.stack([torch.randn(shape, generator=each) for each in draws]).to(low).clamp(low, high)
        pull = _Pull(objective.target.labels, self)

        def losses(variables: tuple[Tensor, ...]) -> RestartLosses:
            (candidates,) = variables
            return objective(candidates)._replace(pull=pull(candidates))

        def noise(candidates: Tensor, rate: float) -> Tensor:
            drawn = torch.stack([torch.randn(shape, generator=each) for each in draws]).to(low)
            return self.energy_noise * rate * drawn.to(candidates)

        with objective:
            found = search_jointly(
                losses,
                [starts],
                iterations=self.iterations,
                learning_rate=self.learning_rate,
                schedule=partial(cosine_schedule, warm_up=min(0.05, 50 / self.iterations)),
                record_every=-(-self.iterations // 100),
                noise=noise if self.energy_noise else None,
                constrain=inside(low, high),
                task=task,
            )
        chosen = found.best_restart()
        return Reconstruction(
            observation.normalisation.invert(found.variables[0][chosen]).clamp(0, 1),
            objective.target.labels,
            float(found.matching[chosen]),
            self.iterations,
            time.perf_counter() - started,
            tuple(found.history[chosen].tolist()),
            objective.notes,
        )


class _Pull:
    """``e mean ||x_s - E||_2`` of each seed, call by call: None before the first consensus."""

    def __init__(self, labels: Int64[Tensor, " n"], settings: GroupConsistency) -> None:
        self._labels, self._settings = labels, settings
        self._first = round(settings.group_from * settings.iterations)
        self._calls = 0
        self._consensus: Tensor | None = None

    def __call__(self, candidates: Float[Tensor, "r n c h w"]) -> Float[Tensor, " r"] | None:
        since = self._calls - self._first
        self._calls += 1
        if since < 0 or not self._settings.group:
            return None
        if self._consensus is None or since % self._settings.group_every == 0:
            self._consensus = consensus(candidates.detach(), self._labels, self._settings.furthest_shift)
        distances = torch.linalg.vector_norm((candidates - self._consensus).flatten(2), dim=2)
        return self._settings.group * distances.mean(1)


GROUP_CONSISTENCY = AttackKind(
    "gradinversion-group",
    "several seeds drawn to their consensus, with batch-norm statistics (Yin et al. 2021)",
    GroupConsistency,
    searches_pixels=True,
)
