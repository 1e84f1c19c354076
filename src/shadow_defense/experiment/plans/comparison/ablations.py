"""The rows of the paper's ablation table: Shadow Defense with one part taken away."""

from __future__ import annotations

from typing import Any

from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError

ABLATIONS: dict[str, dict[str, Any]] = {
    "without-latent-inversion": {"latent_pretraining": False},
    "without-pseudo-attack": {"shadow_rounds": 0},
    "without-equalisation": {"equalise": False},
    "without-momentum": {"momentum": 0.0},
    "without-foreground": {"foreground": False},
    "without-growth": {"schedule": "constant"},
    # Not in the paper: the same noise at other places, and everywhere alike.
    "shuffled-places": {"placement": "shuffled"},
    "uniform-noise": {"placement": "uniform"},
}


def ablation_arms(settings: DefenseSettings) -> dict[str, DefenseSettings]:
    """One arm for each part that is taken away from ``settings``, a Shadow defense.

    Raises:
        ConfigError: for any other defense.
    """
    if settings.defense != "shadow":
        raise ConfigError(f"ablations take parts from a Shadow defense: '{settings.defense}' has none of them")
    return {
        name: settings.model_copy(update={"options": {**settings.options, **change}})
        for name, change in ABLATIONS.items()
    }
