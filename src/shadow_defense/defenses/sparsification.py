"""Gradient sparsification (GS): the smallest entries are sent as zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext, TensorPlace
from shadow_defense.defenses.kind import DefenseKind


class SparsificationSettings(BaseModel):
    """How much is removed, over what the smallest are sought, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    percent: float = Field(80.0, ge=0, le=100, description="p, percent of the entries that are REMOVED")
    scope: Literal["tensor", "global"] = Field(
        "tensor",
        description="tensor: the smallest of each tensor; global: of all, which takes nearly all of the layers with "
        "small gradients",
    )
    error_feedback: bool = Field(
        False, description="add what was not sent to what is sent next; no published baseline does"
    )
    place: TensorPlace = Field("gradients", description="gradients: at every local step; update: once a round")


SPARSIFICATION_PRESETS: dict[str, dict[str, Any]] = {
    # The default of the published code of GGL and of Censor.
    "weak": {"percent": 20.0},
    # Plato's, in the middle of the published 10 to 99. What the Shadow Defense paper
    # used is unknown.
    "paper": {},
    # Learning to Invert (Wu et al. 2023); below about 90 little is hidden of a single image.
    "strong": {"percent": 99.0},
}


def smallest_kept(magnitudes: Float[Tensor, " n"], percent: float) -> Float[Tensor, ""]:
    """The smallest of ``magnitudes`` that is not below their ``percent``-th percentile.

    The percentile q_p with linear interpolation (numpy's default) lies between two neighbours of the sorted values,
    so that "not below q_p" and "not below the value at the rank ceil((n - 1) p / 100), counted from 0" keep the same
    entries; the latter needs no rounding, nor torch.quantile, which refuses more than 16 million values.

    Args:
        percent: p, 0 to 100, taken as the decimal number that it is written as: 99.9 is 999/1000.

    >>> smallest_kept(torch.tensor([5.0, 3.0, 1.0, 2.0, 4.0]), 80.0)  # the percentile is 4.2
    tensor(5.)
    """
    rank = math.ceil((len(magnitudes) - 1) * Fraction(str(percent)) / 100)
    return magnitudes.kthvalue(rank + 1).values


def sparsify(
    tensors: Mapping[str, Tensor], percent: float, scope: Literal["tensor", "global"] = "tensor"
) -> dict[str, Tensor]:
    """``g`` where ``|g| >= q_p(|g|)``, else 0 (docs/defenses.md); ties at the percentile survive.

    Args:
        percent: p, percent removed, 0 to 100. Of n different magnitudes n - ceil((n - 1) p / 100) are kept.
        scope: percentile of each tensor, or one of all entries together.
    """
    magnitudes = {name: tensor.abs().flatten() for name, tensor in tensors.items() if tensor.numel()}
    if scope == "global" and magnitudes:
        least = dict.fromkeys(magnitudes, smallest_kept(torch.cat(list(magnitudes.values())), percent))
    else:
        least = {name: smallest_kept(values, percent) for name, values in magnitudes.items()}
    # What is not a number is not below: it stays, and is found before the update leaves.
    return {
        name: tensor.masked_fill(tensor.abs() < least[name], 0) if name in least else tensor.clone()
        for name, tensor in tensors.items()
    }


class SparsificationDefense(ParameterDefense):
    """Sparsification at every step or once a round, with what was held back kept for later where asked for."""

    def __init__(self, settings: SparsificationSettings) -> None:
        super().__init__(settings.place)
        self.settings = settings
        self._held_back: dict[str, Tensor] = {}
        self._zeros, self._entries = 0, 0

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        self._zeros, self._entries = 0, 0

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        if self.settings.error_feedback:
            tensors = {
                name: tensor + self._held_back[name].to(tensor.device) if self._held_back else tensor
                for name, tensor in tensors.items()
            }
        sent = sparsify(tensors, self.settings.percent, self.settings.scope)
        if self.settings.error_feedback:
            self._held_back = {name: tensor - sent[name] for name, tensor in tensors.items()}
        self._zeros += sum(int((tensor == 0).sum()) for tensor in sent.values())
        self._entries += sum(tensor.numel() for tensor in sent.values())
        return sent

    def measurements(self) -> dict[str, float]:
        """The share of the round's entries that were zero when they were sent."""
        return {"zero_share": self._zeros / max(self._entries, 1)}

    def state_dict(self) -> dict[str, Any]:
        return {"held_back": dict(self._held_back)} if self._held_back else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held_back = {name: tensor.clone() for name, tensor in state.get("held_back", {}).items()}


SPARSIFICATION = DefenseKind(
    "gradient-sparsification",
    "smallest entries of gradients or update sent as zero (GS)",
    SparsificationSettings,
    lambda settings, resources: SparsificationDefense(settings),
    SPARSIFICATION_PRESETS,
    acts_on=("gradients", "update"),
    reads="nothing",
)
