"""For each texture the weakest strength that meets a target, by linear removers alone: seconds, without a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shadow_defense.errors import ConfigError
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.settings import PRESETS, protect_preset
from shadow_defense.experiment.protecting.weakest import LEAKS, Target, weakest_strength
from shadow_defense.progress import Progress
from shadow_defense.protection.building import build_texture
from shadow_defense.protection.constants import Constants, measure_constants
from shadow_defense.protection.settings import TextureSettings
from shadow_defense.protection.texture import Texture


@dataclass(frozen=True)
class Weakest:
    """What was found for one preset.

    Attributes:
        strength: None where none meets the target.
        leaks: by measure, what is left at that strength.
        reason: why there is none.
    """

    strength: float | None
    leaks: Mapping[str, float]
    reason: str | None = None


def calibrate_textures(public: PublicImages, target: Target, seed: int, progress: Progress) -> dict[str, Weakest]:
    """By preset of `protect`, of those that have a strength to choose.

    Raises:
        DataError: for public images that say too little.
    """
    chosen = {name: protect_preset(name, seed=seed) for name in PRESETS if PRESETS[name]["texture"] != "decoy"}
    return {name: _weakest(settings, public, target, seed, progress) for name, settings in chosen.items()}


def _weakest(settings: TextureSettings, public: PublicImages, target: Target, seed: int, progress: Progress) -> Weakest:
    constants: Constants = measure_constants(settings, public.images, public.labels, seed=seed, progress=progress)
    unit = public.images.float() / 255

    def make(strength: float) -> Texture:
        return build_texture(settings, replace(constants, strength=strength), public.images)

    try:
        strength = weakest_strength(make, unit, target)
    except ConfigError as error:
        return Weakest(None, {}, str(error))
    texture = make(strength)
    return Weakest(strength, {measure: leak(texture, unit, len(unit)) for measure, (leak, _) in LEAKS.items()})
