"""Gradient clipping (GC): the gradient, or the update, is scaled down to a largest norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext, TensorPlace
from shadow_defense.defenses.kind import DefenseKind

NORM_SLACK = 1e-6
"""Added to a norm before it divides, as in the published codes (docs/defenses.md)."""


class ClippingSettings(BaseModel):
    """The bound, over what the norm is taken, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: float = Field(4.0, gt=0, description="C, largest L2 norm, in units of the gradients or of the update")
    scope: Literal["global", "tensor"] = Field(
        "global", description="global: one norm over all parameters; tensor: one for each tensor"
    )
    place: TensorPlace = Field("gradients", description="gradients: at every local step; update: once a round")


CLIPPING_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: rarely active.
    "weak": {"clip": 10.0},
    # The default of the published code of GGL and of Censor, and of Wei et al. 2021.
    # What the Shadow Defense paper used is unknown.
    "paper": {},
    # The usual bound of DP-SGD (GradAttack).
    "strong": {"clip": 1.0},
}


def global_norm(tensors: Mapping[str, Tensor]) -> float:
    """The L2 norm of all entries of all tensors together, summed in double precision."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def clip_factor(norm: float, clip: float) -> float:
    """k = min(1, C / (N + 1e-6)) (docs/defenses.md).

    >>> clip_factor(2.0, 4.0), round(clip_factor(2.0, 1.0), 6)
    (1.0, 0.5)
    """
    return min(1.0, clip / (norm + NORM_SLACK))


def clip_global(tensors: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """All tensors scaled by one factor, so that their norm together is at most ``clip`` (infinity: unchanged)."""
    factor = clip_factor(global_norm(tensors), clip)
    return {name: factor * tensor for name, tensor in tensors.items()}


def clip_tensors(tensors: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Each tensor scaled by a factor of its own, so that each one's norm is at most ``clip``."""
    return {name: clip_factor(global_norm({name: tensor}), clip) * tensor for name, tensor in tensors.items()}


class ClippingDefense(ParameterDefense):
    """Clipping at every step or once a round. Against an attack that ignores scale, one image has no protection."""

    def __init__(self, settings: ClippingSettings) -> None:
        super().__init__(settings.place)
        self.settings = settings
        self._norms: list[float] = []
        self._active = 0

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        self._norms, self._active = [], 0

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        together = self.settings.scope == "global"
        norm = global_norm(tensors)
        largest = norm if together else max(global_norm({name: tensor}) for name, tensor in tensors.items())
        self._norms.append(norm)
        self._active += clip_factor(largest, self.settings.clip) < 1
        return (clip_global if together else clip_tensors)(tensors, self.settings.clip)

    def measurements(self) -> dict[str, float]:
        """Share of the round's steps in which anything was clipped, and the mean global norm before clipping."""
        steps = max(len(self._norms), 1)
        return {"clipped_share": self._active / steps, "norm": sum(self._norms) / steps}


CLIPPING = DefenseKind(
    "gradient-clipping",
    "gradients or update scaled down to a largest norm (GC)",
    ClippingSettings,
    lambda settings, resources: ClippingDefense(settings),
    CLIPPING_PRESETS,
    acts_on=("gradients", "update"),
    reads="nothing",
)
