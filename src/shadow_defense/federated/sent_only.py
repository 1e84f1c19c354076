"""Defenses that need nothing but the update, for places that see nothing else: a Flower mod, an NVFlare filter."""

from __future__ import annotations

from shadow_defense.data.dataset import Normalisation, no_images
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.errors import DefenseError


def needs_update_alone() -> list[str]:
    """The defenses that need nothing but the update: all others read images, and belong into the training loop."""
    return sorted(name for name, kind in DEFENSES.own.items() if kind.reads == "nothing" and "update" in kind.acts_on)


def check_sent_only(settings: DefenseSettings, place: str) -> None:
    """Raise :class:`DefenseError` for a defense that acts anywhere else or needs images; ``place`` is for the words."""
    kinds = [DEFENSES[part] for part in settings.parts()]
    others = any(kind.reads != "nothing" and not kind.protects_nothing for kind in kinds)
    if others or any(acting != "update" for acting in settings.acts_on()):
        raise DefenseError(
            f"the defense '{settings.defense}' cannot be a {place}, which sees nothing but the update: take "
            f"{', '.join(needs_update_alone())} with the option place=update, or defend in the training loop"
        )


def build_sent_only(settings: DefenseSettings, client: str, seed: int) -> Defense:
    """A fresh defense for one client, which is given no images and no generator."""
    return settings.build(Resources(None, Normalisation((0.0,), (1.0,)), no_images(), 0, client, seed))
