"""CENSOR (Zhang et al., NDSS 2025): of some random directions orthogonal to the gradient, the best is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext, TensorPlace
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.errors import DefenseError
from shadow_defense.models.functional import functional_call, training_mode
from shadow_defense.seeds import named_generator, standard_normal

Rule = Literal["correct", "released"]
Fallback = Literal["best_candidate", "raw"]

SHORTEST_REMAINDER = 1e-6
"""Of a unit vector: below it, what orthogonalisation left is rounding, and scaled up would be the gradient itself."""


class CensorSettings(BaseModel):
    """How candidates are drawn and chosen, where, and in which rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: int = Field(
        20, ge=0, le=10_000, description="T, candidates drawn for each message; each costs a forward pass"
    )
    rule: Rule = Field(
        "correct",
        description="correct: orthogonal to the gradient; released: the projection of the published code, which is "
        "orthogonal only where a tensor's gradient has a norm of 1",
    )
    fallback: Fallback = Field(
        "best_candidate",
        description="what is sent where no candidate lowers the loss. best_candidate: the one of least loss; "
        "raw: the unprotected gradient, as published",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="eta of the trial step at place gradients; null: the client's own. The published code takes 1e-4",
    )
    protected_rounds: int | None = Field(
        10,
        ge=0,
        le=1_000_000,
        description="rounds, from the first, that are protected; later ones are sent raw. null: all",
    )
    place: TensorPlace = Field(
        "gradients",
        description="gradients: at every local step; update: once a round, on the loss of the round's first batch",
    )


CENSOR_PRESETS: dict[str, dict[str, Any]] = {
    # The gradient itself is sent where no candidate lowers the loss.
    "weak": {"fallback": "raw"},
    # T and the protected rounds of the published code (docs/defenses.md), its algorithm without its two
    # leaks. What the Shadow Defense paper used is unknown.
    "paper": {},
    # No round is sent raw.
    "strong": {"protected_rounds": None},
    # The published code as it is, defects included.
    "released": {"rule": "released", "fallback": "raw", "learning_rate": 1e-4},
}


@dataclass(frozen=True)
class Chosen:
    """What is sent, and how it was found.

    Attributes:
        tensors: by name, none of them the caller's.
        accepted: a candidate lowered the loss.
        raw: the caller's own tensors are sent, copied.
    """

    tensors: dict[str, Tensor]
    accepted: bool
    raw: bool


def unit_and_norm(gradient: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], float]:
    """``g / ||g||`` and ``||g||`` without underflow of the squares; zeros and 0 where there is no direction.

    A gradient of a single entry has no orthogonal direction, and counts as none.
    """
    largest = gradient.abs().max() if gradient.numel() > 1 else gradient.new_zeros(())
    if largest == 0:
        return torch.zeros_like(gradient), 0.0
    scaled = gradient / largest
    return scaled / scaled.norm(), (largest * scaled.norm()).item()


def orthogonal_candidate(
    unit: Float[Tensor, "*shape"], norm: float, random: Float[Tensor, "*shape"], rule: Rule = "correct"
) -> Float[Tensor, "*shape"]:
    """``o = r - (<r, g> / <g, g>) g`` for the unit vector r along ``random``, made as long as g.

    Zhang et al. 2025 (docs/defenses.md). ``released`` divides by ``||g||`` instead of ``<g, g>``, which makes the
    cosine with g ``c (1 - ||g||) / sqrt(c^2 (1 - ||g||)^2 + 1 - c^2)`` with ``c = <r, g> / ||g||``. ``correct``
    projects twice: once leaves a remainder of the rounding's size. Zeros where nothing orthogonal is left.

    Args:
        unit: g / ||g||, or zeros.
        norm: ||g||.
        random: of any length above 0.

    >>> orthogonal_candidate(torch.tensor([0.6, 0.8]), 5.0, torch.tensor([1.0, 0.0]))
    tensor([ 4.0000, -3.0000])
    """
    if norm == 0:
        return torch.zeros_like(unit)
    remainder = random / random.norm()
    if rule == "correct":
        for _ in range(2):
            remainder = remainder - (remainder * unit).sum() * unit
    else:
        remainder = remainder - (remainder * unit).sum() * norm * unit
    length = remainder.norm()
    return torch.zeros_like(unit) if length <= SHORTEST_REMAINDER else remainder / length * norm


def censor(
    tensors: Mapping[str, Tensor],
    loss_with: Callable[[Mapping[str, Tensor]], float],
    loss_before: float,
    *,
    trials: int,
    draws: torch.Generator,
    rule: Rule = "correct",
    fallback: Fallback = "best_candidate",
) -> Chosen:
    """Of ``trials`` candidates, each tensor of each orthogonal to its own in ``tensors``, the one of least loss.

    Zhang et al. 2025 (docs/defenses.md). With no trials the tensors are sent as they are.

    Args:
        loss_with: the loss of the model after the step, or the update, that a candidate makes.
        loss_before: the loss without any, which a candidate must get below in order to be accepted.
        draws: CPU generator.

    Raises:
        DefenseError: when no candidate has a finite loss and the raw tensors must not be sent.
    """
    directions = {name: unit_and_norm(tensor) for name, tensor in tensors.items()}
    best, least = None, math.inf
    for _ in range(trials):
        candidate = {}
        for name, (unit, norm) in directions.items():
            random = standard_normal(unit.shape, draws, unit.dtype).to(unit.device)
            candidate[name] = orthogonal_candidate(unit, norm, random, rule)
        loss = loss_with(candidate)
        if loss < least:
            best, least = candidate, loss
    accepted = least < loss_before
    if best is not None and (accepted or fallback == "best_candidate"):
        return Chosen(best, accepted, raw=False)
    if trials and fallback == "best_candidate":
        raise DefenseError(
            f"none of Censor's {trials} candidates has a finite loss: lower the learning rate of training or of the "
            "defense"
        )
    return Chosen({name: tensor.clone() for name, tensor in tensors.items()}, accepted=False, raw=True)


class CensorDefense(ParameterDefense):
    """Censor at every step or once a round.

    It hides directions, not lengths: every tensor's norm is sent as it is, and so are the buffers. To first order
    the model does not learn from what is sent by the correct rule.

    Args:
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces the draws.
    """

    def __init__(self, settings: CensorSettings, seed: int) -> None:
        super().__init__(settings.place)
        self.settings = settings
        self.seed = seed
        self._forget()

    def _forget(self) -> None:
        self._held: Batch | None = None
        self._tried, self._accepted, self._raw = 0, 0, 0

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        self._forget()

    def protect_gradients(
        self, gradients: Mapping[str, Tensor], batch: Batch, context: RoundContext
    ) -> Mapping[str, Tensor]:
        if self.place == "update" and self._held is None:
            # The first batch is a whole one, unlike the last.
            self._held = batch
        return super().protect_gradients(gradients, batch, context)

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        chosen = self.settings
        if chosen.protected_rounds is not None and context.round >= chosen.protected_rounds:
            self._raw += 1
            return {name: tensor.clone() for name, tensor in tensors.items()}
        evaluated = self._held if batch is None else batch
        if evaluated is None:
            raise DefenseError("Censor saw no image in this round: an update cannot be protected without one")
        model, loss_fn = context.model, context.loss_fn
        if batch is None:
            start, scale = {name: context.global_state[name] for name in tensors}, 1.0
        else:
            start = {name: tensor.detach() for name, tensor in model.named_parameters() if name in tensors}
            scale = -(context.learning_rate if chosen.learning_rate is None else chosen.learning_rate)

        def loss_at(parameters: Mapping[str, Tensor]) -> float:
            return loss_fn(functional_call(model, dict(parameters), (evaluated.images,)), evaluated.labels).item()

        def loss_with(candidate: Mapping[str, Tensor]) -> float:
            return loss_at({name: tensor + scale * candidate[name] for name, tensor in start.items()})

        with training_mode(model, False), torch.no_grad():
            result = censor(
                tensors,
                loss_with,
                loss_at(start),
                trials=chosen.trials,
                draws=named_generator(self.seed, "censor", context.round, self.step),
                rule=chosen.rule,
                fallback=chosen.fallback,
            )
        self._tried += 1
        self._accepted += result.accepted
        self._raw += result.raw
        return result.tensors

    def measurements(self) -> dict[str, float]:
        """Share of the round's searches in which a candidate lowered the loss; share of messages that were raw."""
        return {
            "acceptance_rate": self._accepted / max(self._tried, 1),
            "raw_share": self._raw / max(self.step, 1),
        }


CENSOR = DefenseKind(
    "censor",
    "the best of some random directions orthogonal to the gradient (Zhang et al. 2025)",
    CensorSettings,
    lambda settings, resources: CensorDefense(settings, resources.seed_of("censor")),
    CENSOR_PRESETS,
    acts_on=("gradients", "update"),
)
