"""What a protection's texture is made of, with the strength that its targets ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shadow_defense.devices import resolved_device
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.networks import NONE, Networks
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.experiment.protecting.weakest import weakest_strength
from shadow_defense.federated.site_folder import state_root
from shadow_defense.metrics.limit import Limit
from shadow_defense.progress import Progress
from shadow_defense.protection.building import build_texture
from shadow_defense.protection.constants import Constants, kept_constants, measure_constants
from shadow_defense.protection.frozen import FrozenProtection
from shadow_defense.protection.texture import Texture


def site_constants(
    settings: ProtectSettings,
    targets: Sequence[Limit],
    public: PublicImages,
    count: int,
    progress: Progress,
    networks: Networks = NONE,
    earlier: FrozenProtection | None = None,
) -> Constants:
    """Those of :func:`choose_constants`, kept at the site (:func:`.kept_constants`).

    Args:
        count: images that will be protected.
        earlier: another protection of the same images, of which the attacker has seen something too.
    """
    gallery = gallery_for(count)
    return kept_constants(
        state_root(),
        settings,
        public.images,
        public.labels,
        lambda: choose_constants(settings, targets, public, gallery, progress, networks, earlier),
        settings.seed,
        [str(target) for target in targets],
        # Nothing else asks how many there are: the strength of one data set is then that of another.
        gallery if any(target.metric == "linkage" for target in targets) else None,
        networks.marks() | ({} if earlier is None else {"earlier": earlier.fingerprint}),
    )


LEAST_GALLERY = 64
"""Among fewer images than these more than one in fifty is found by chance: no noise hides it there."""


def gallery_for(count: int) -> int:
    """Among how many images one is looked for: the greatest power of two that is no more than ``count``.

    Of fewer images more are found, so that the strength is on the safe side. A data set that grows keeps its strength,
    and each image its draw, until it has doubled: another draw would be a second look at it.

    >>> [gallery_for(count) for count in (20, 300, 1023, 1024)]
    [64, 256, 512, 1024]
    """
    return max(LEAST_GALLERY, 1 << (count.bit_length() - 1))


def choose_constants(
    settings: ProtectSettings,
    targets: Sequence[Limit],
    public: PublicImages,
    gallery: int,
    progress: Progress,
    networks: Networks = NONE,
    earlier: FrozenProtection | None = None,
) -> Constants:
    """What the texture is made of, from public images alone; the weakest strength that meets every target.

    Args:
        gallery: images among which one is looked for.
        earlier: a look that counts beside this one.

    Raises:
        ConfigError: for a target that nothing reaches, or that a texture has no strength for.
        DataError: for public images that say too little.
    """
    constants = measure_constants(
        settings,
        public.images,
        public.labels,
        seed=settings.seed,
        progress=progress,
        classifier=networks.classifier,
        device=resolved_device(settings.device),
    )
    if not targets:
        return constants
    if settings.texture == "decoy":
        raise ConfigError("--target has no strength to choose in a decoy: leave it out, or take another --preset")

    def make(strength: float) -> Texture:
        return build_texture(settings, replace(constants, strength=strength), public.images)

    unit = public.images.float() / 255
    looks = () if earlier is None else (earlier.texture,)
    strengths = [weakest_strength(make, unit, target, gallery=gallery, earlier=looks) for target in targets]
    return replace(constants, strength=max(strengths))
