"""How a data set is protected: every choice with its range, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.protection.settings import TextureSettings
from shadow_defense.validation import validated


class ProtectSettings(TextureSettings):
    """Texture and strength of a protection, and how hard its audit tries."""

    audited: int = Field(300, ge=20, le=100_000, description="protected images that the audit attacks, at most")
    remover_steps: int = Field(700, ge=50, le=100_000, description="steps in which the learned remover is trained")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of what is public: classifier, removers; never of the noise")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "recommended": {"texture": "task", "directions": 8, "strength": 1.5},
    "white": {"texture": "white", "strength": 1.0},
    "covariance": {"texture": "covariance", "strength": 1.0},
    "decoy": {"texture": "decoy", "share": 0.7, "floor": 0.15},
}
"""Textures at the strengths that docs/protect.md measures."""


def protect_preset(name: str, /, **options: Any) -> ProtectSettings:
    """The settings of a preset, some of them changed.

    Raises:
        ConfigError: for an unknown preset or setting, listing the valid ones, or a value out of its range.
    """
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return validated(ProtectSettings, {**PRESETS[name], **options}, ConfigError, "protect")
