"""PRECODE (Scheliga et al., WACV 2022): a variational bottleneck in the task model, not noise on what is sent."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.errors import DefenseError
from shadow_defense.models.variational_bottleneck import VariationalBottleneck, insert_bottleneck


class PrecodeSettings(BaseModel):
    """The bottleneck's place, its width, and how hard its codes are drawn to pure noise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(256, ge=1, le=65_536, description="K, numbers in the code")
    weight: float = Field(
        1e-3, ge=0, description="beta, weight of the codes' divergence from pure noise, for each bit of it"
    )
    layer: str | None = Field(
        None, description="module name of the nn.Linear that the bottleneck goes before; null: the model's last one"
    )


PRECODE_PRESETS: dict[str, dict[str, Any]] = {
    # What the published code of DCS takes for its comparison on CIFAR-10.
    "weak": {"width": 32, "weight": 1e-4},
    # The authors'.
    "paper": {},
    # Ours.
    "strong": {"weight": 1e-2},
}


def adapt_precode(settings: PrecodeSettings, model: nn.Module, seed: int) -> nn.Module:
    """A copy of ``model`` with the bottleneck that the settings name; every client and the server train it."""
    return insert_bottleneck(model, width=settings.width, weight=settings.weight, seed=seed, layer=settings.layer)


class PrecodeDefense(Defense):
    """Nothing but the check that the model has the bottleneck: the defense is the model.

    A control rather than a protection: what enters a fully connected layer with a bias before the block is its weight's
    gradient over its bias's, and in convolutional networks an attacker searches for the noise as well.
    """

    def check_model(self, model: nn.Module) -> None:
        """Raises :class:`DefenseError` for a model without the bottleneck, which would be trained unprotected."""
        if not any(isinstance(module, VariationalBottleneck) for module in model.modules()):
            raise DefenseError(
                f"PRECODE changes the task model and {type(model).__name__} has no variational bottleneck: train the "
                "model that DefenseSettings.adapt_model gives"
            )


PRECODE = DefenseKind(
    "precode",
    "a variational bottleneck in the task model (Scheliga et al. 2022)",
    PrecodeSettings,
    lambda settings, resources: PrecodeDefense(),
    PRECODE_PRESETS,
    adapt_model=adapt_precode,
    draws_in_model=True,
)
