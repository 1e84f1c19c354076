"""OUTPOST (Wang et al., INFOCOM 2023): now and then pruning, and noise where the Fisher information is large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.sparsification import smallest_kept, sparsify
from shadow_defense.seeds import named_generator, standard_normal

LARGEST_RISK = 1.0


class OutpostSettings(BaseModel):
    """How often a step is perturbed, and how much; it acts on the gradients of single steps only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decay: float = Field(0.125, ge=0, description="beta: step i is perturbed with probability 1 / (1 + beta i)")
    count: Literal["round", "released", "cumulative"] = Field(
        "round",
        description="what i is. round: the step within the round, from 1; released: epoch * (batch + 1) of the round, "
        "epochs from 1 and batches from 0, as the published code counts; cumulative: the steps of all rounds, from 1",
    )
    fisher: Literal["released", "averaged"] = Field(
        "released",
        description="released: the step's squared gradient averaged over the first axis, as the published code has "
        "it; averaged: squared gradients entry by entry, averaged over the round's batches so far, as the paper has it",
    )
    fisher_percent: float = Field(
        40.0, ge=0, le=100, description="phi, percent of the Fisher values, the largest, that receive noise"
    )
    prune_percent: float = Field(80.0, ge=0, le=100, description="rho, percent of each tensor's entries REMOVED")
    noise: float = Field(0.8, ge=0, description="lambda: standard deviation of the noise at a risk of 1")


OUTPOST_PRESETS: dict[str, dict[str, Any]] = {
    # Plato's setting against the fishing attack.
    "weak": {"fisher_percent": 10.0, "noise": 0.1},
    # Plato's defaults. What the Shadow Defense paper used is unknown.
    "paper": {},
    # No step goes unperturbed.
    "strong": {"decay": 0.0},
}


def perturbation_probability(iteration: int, decay: float) -> float:
    """``Pr_i = 1 / (1 + beta i)`` (docs/defenses.md).

    >>> [round(perturbation_probability(i, 0.125), 4) for i in (0, 1, 2, 8, 72)]
    [1.0, 0.8889, 0.8, 0.5, 0.1]
    """
    return 1 / (1 + decay * iteration)


def parameter_risk(parameter: Tensor) -> float:
    """``min(Var(theta), 1)``, the unbiased variance over all entries; 0 for a single entry, which has none.

    Parameters that are all equal have none either: batch norm's scales and most biases get no noise at first.

    >>> round(parameter_risk(torch.tensor([[0.1, 0.3], [0.5, 0.7]])), 4)
    0.0667
    """
    return min(parameter.detach().var().item(), LARGEST_RISK) if parameter.numel() > 1 else 0.0


def fisher_of_rows(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``F = mean over the first axis of g^2``: one number for a bias, the shape of one row for a weight.

    The first axis counts a layer's outputs, not samples: this is the published code, not a Fisher information.
    """
    return {
        name: gradient.square().mean(dim=0) if gradient.dim() else gradient.square()
        for name, gradient in gradients.items()
    }


def perturb(
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor],
    *,
    fisher_percent: float,
    prune_percent: float,
    noise: float,
    draws: torch.Generator,
) -> dict[str, Tensor]:
    """``g 1[|g| >= q_rho(|g|)] + N(0, (lambda risk)^2) 1[F >= q_{100-phi}(F)]`` (docs/defenses.md).

    The percentile of |g| is each tensor's own, that of F is over all Fisher values together. Noise may fall on pruned
    entries.

    Args:
        parameters: the weights where the gradients were taken, by the same names.
        fisher: by the same names, each of a shape that broadcasts to its gradient.
        noise: lambda, in units of the gradients.
        draws: CPU generator. The well-known public code seeds it alike at every step, so that whoever knows the seed
            can take the noise away (and in its newest version returns the gradients unperturbed).
    """
    least = smallest_kept(torch.cat([values.flatten() for values in fisher.values()]), 100 - fisher_percent)
    perturbed = {}
    for name, pruned in sparsify(gradients, prune_percent).items():
        normal = standard_normal(pruned.shape, draws, pruned.dtype).to(pruned.device)
        scale = noise * parameter_risk(parameters[name])
        perturbed[name] = pruned + scale * normal * (fisher[name] >= least)
    return perturbed


class OutpostDefense(ParameterDefense):
    """Perturbed steps ever more rarely: the others are applied as they are.

    Args:
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces the draws.
    """

    def __init__(self, settings: OutpostSettings, seed: int) -> None:
        super().__init__("gradients")
        self.settings = settings
        self.seed = seed
        self._round = -1
        self._steps_before = 0
        self._forget()

    def _forget(self) -> None:
        self._epoch, self._batch = 1, -1
        self._epoch_samples: set[str] = set()
        self._squares: dict[str, Tensor] = {}
        self._perturbed = 0

    def begin_round(self, context: RoundContext) -> None:
        # A round that is computed again counts its steps once.
        if context.round != self._round:
            self._steps_before += self.step
        self._round = context.round
        super().begin_round(context)
        self._forget()

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        assert batch is not None
        chosen = self.settings
        iteration = self._iteration(batch)
        fisher = self._fisher(tensors)
        draws = named_generator(self.seed, "outpost", context.round, self.step)
        if torch.rand((), generator=draws).item() >= perturbation_probability(iteration, chosen.decay):
            return {name: tensor.clone() for name, tensor in tensors.items()}
        self._perturbed += 1
        return perturb(
            tensors,
            dict(context.model.named_parameters()),
            fisher,
            fisher_percent=chosen.fisher_percent,
            prune_percent=chosen.prune_percent,
            noise=chosen.noise,
            draws=draws,
        )

    def _iteration(self, batch: Batch) -> int:
        if self._epoch_samples.intersection(batch.sample_ids):
            # Within an epoch no sample comes twice.
            self._epoch, self._batch, self._epoch_samples = self._epoch + 1, -1, set()
        self._batch += 1
        self._epoch_samples.update(batch.sample_ids)
        if self.settings.count == "released":
            return self._epoch * (self._batch + 1)
        return self.step + 1 + (self._steps_before if self.settings.count == "cumulative" else 0)

    def _fisher(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.settings.fisher == "released":
            return fisher_of_rows(gradients)
        for name, gradient in gradients.items():
            self._squares[name] = self._squares.get(name, 0) + gradient.square()
        # Not divided by the number of batches: it is common to all, and the mask only compares them.
        return dict(self._squares)

    def measurements(self) -> dict[str, float]:
        """The share of the round's steps that were perturbed; the others were applied as they were."""
        return {"perturbed_share": self._perturbed / max(self.step, 1)}

    def state_dict(self) -> dict[str, Any]:
        steps = {"round": self._round, "before": self._steps_before, "within": self.step}
        return {"steps": {name: torch.tensor(number) for name, number in steps.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._round, self._steps_before, self.step = (
            int(state["steps"][name]) for name in ("round", "before", "within")
        )


OUTPOST = DefenseKind(
    "outpost",
    "some steps pruned, with noise by Fisher information and the weights' variance (Wang et al. 2023)",
    OutpostSettings,
    lambda settings, resources: OutpostDefense(settings, resources.seed_of("outpost")),
    OUTPOST_PRESETS,
    acts_on=("gradients",),
    reads="model",
)
