"""What a protection's texture is made of, with a strength that a target asks for."""

from __future__ import annotations

from dataclasses import replace

from shadow_defense.errors import ConfigError
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.experiment.protecting.site import state_root
from shadow_defense.experiment.protecting.weakest import Target, weakest_strength
from shadow_defense.progress import Progress
from shadow_defense.protection.building import build_texture
from shadow_defense.protection.constants import Constants, kept_constants, measure_constants
from shadow_defense.protection.texture import Texture


def site_constants(
    settings: ProtectSettings, target: Target | None, public: PublicImages, progress: Progress
) -> Constants:
    """Those of :func:`choose_constants`, kept at the site (:func:`.kept_constants`)."""
    return kept_constants(
        state_root(),
        settings,
        public.images,
        public.labels,
        lambda: choose_constants(settings, target, public, progress),
        settings.seed,
        None if target is None else str(target),
    )


def choose_constants(
    settings: ProtectSettings, target: Target | None, public: PublicImages, progress: Progress
) -> Constants:
    """What the texture is made of, from public images alone; the weakest strength that meets a target.

    Raises:
        ConfigError: for a target that nothing reaches, or that a texture has no strength for.
        DataError: for public images that say too little.
    """
    constants = measure_constants(settings, public.images, public.labels, seed=settings.seed, progress=progress)
    if target is None:
        return constants
    if settings.texture == "decoy":
        raise ConfigError("--target has no strength to choose in a decoy: leave it out, or take another --preset")

    def make(strength: float) -> Texture:
        return build_texture(settings, replace(constants, strength=strength), public.images)

    return replace(constants, strength=weakest_strength(make, public.images.float() / 255, target))
