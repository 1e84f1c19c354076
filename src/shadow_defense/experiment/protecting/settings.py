"""How a data set is protected: every choice with its range, and the presets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import Field

from shadow_defense.devices import DEVICE_MEANING, DeviceName
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.protecting.weakest import parse_target
from shadow_defense.metrics.limit import Limit
from shadow_defense.protection.settings import TextureSettings
from shadow_defense.validation import validated


class ProtectSettings(TextureSettings):
    """Texture and strength of a protection, and how hard its audit tries."""

    audited: int = Field(300, ge=20, le=100_000, description="protected images that the audit attacks, at most")
    remover_steps: int = Field(700, ge=50, le=100_000, description="steps in which the learned remover is trained")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of what is public: classifier, removers; never of the noise")
    # No part of what is protected: a folder goes on, and is audited, on another machine.
    device: DeviceName = Field("auto", exclude=True, description=DEVICE_MEANING)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "recommended": {"texture": "features"},
    "directions": {"texture": "task"},
    "white": {"texture": "white", "strength": 1.0},
    "covariance": {"texture": "covariance", "strength": 1.0},
    "decoy": {"texture": "decoy", "share": 0.7, "floor": 0.15},
}
"""Textures at the strengths that docs/protect.md measures."""

_HIDDEN = (Limit("psnr", 1.5), Limit("linkage", 0.04))
PROMISES: Mapping[str, tuple[Limit, ...]] = {"recommended": _HIDDEN, "directions": _HIDDEN}
"""What a preset is chosen for: its strength is the weakest at which public images leave no more.

2 dB above the mean image and one image in twenty that is found are promised. A learned remover adds up to half a
decibel to the linear one, and of the few images that a certificate looks for more are found by chance.
"""


def targets_of(preset: str, asked: str | None, options: Collection[str]) -> tuple[Limit, ...]:
    """What the strength is chosen for: what was asked for, else the preset's own where no strength was given.

    Raises:
        ConfigError: for both a target and a strength.
    """
    if asked is not None and "strength" in options:
        raise ConfigError("--target chooses the strength, and --set strength gives it: leave one of them out")
    if asked is not None:
        return (parse_target(asked),)
    return () if "strength" in options else PROMISES.get(preset, ())


def protect_preset(name: str, /, **options: Any) -> ProtectSettings:
    """The settings of a preset, some of them changed.

    Raises:
        ConfigError: for an unknown preset or setting, listing the valid ones, or a value out of its range.
    """
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return validated(ProtectSettings, {**PRESETS[name], **options}, ConfigError, "protect")
