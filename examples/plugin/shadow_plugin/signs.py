"""A defense: of each entry only its sign is sent (signSGD, Bernstein et al. 2018, arXiv:1802.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext, TensorPlace
from shadow_defense.defenses.kind import DefenseKind


class SignSettings(BaseModel):
    """What can be set; the configuration's options are checked against it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = Field(1.0, gt=0, description="the sent size of an entry, in units of its tensor's mean size")
    place: TensorPlace = Field("gradients", description="gradients: at every local step; update: once a round")


class SignDefense(ParameterDefense):
    """``s sign(g) mean|g|`` in place of each tensor g."""

    # What others ask of it: it reads nothing but the tensors, so it may follow what is differentially private.
    kind: ClassVar = DefenseKind(
        "signs",
        "of each entry only its sign is sent (Bernstein et al. 2018)",
        SignSettings,
        lambda settings, resources: SignDefense(settings),
        {"paper": {}, "weak": {"scale": 0.5}},
        acts_on=("gradients", "update"),
        reads="nothing",
    )

    def __init__(self, settings: SignSettings) -> None:
        super().__init__(settings.place)
        self.settings = settings

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        return {name: tensor.sign() * tensor.abs().mean() * self.settings.scale for name, tensor in tensors.items()}
