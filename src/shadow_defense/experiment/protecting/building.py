"""The texture of the settings, from public images alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.dataset import ImageSet, measure_normalisation
from shadow_defense.errors import ConfigError, DataError
from shadow_defense.experiment.protecting.folder import Constants, hash_of, read_constants, write_constants
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.experiment.protecting.site import state_root
from shadow_defense.experiment.protecting.weakest import weakest_strength
from shadow_defense.progress import Progress
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.decoy import Decoy, PoolDecoys
from shadow_defense.protection.directions import task_directions, train_classifier
from shadow_defense.protection.frozen import FrozenProtection
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import Whitening, measure_whitening


def spared_directions(
    settings: ProtectSettings, whitening: Whitening, public: PublicImages, progress: Progress
) -> Float[Tensor, "k j"]:
    """The directions that a classifier of the public images needs.

    Raises:
        DataError: where the public images have no labels.
    """
    if public.labels is None:
        raise DataError(
            "the public images have no labels, which texture task needs: give a folder with a sub-folder a class or an "
            ".npz, or --preset covariance"
        )
    names = tuple(str(place) for place in range(len(public.images)))
    normalisation = measure_normalisation(ImageSet(public.images, public.labels, names))
    unit = public.images.float() / 255
    model = train_classifier(unit, public.labels, normalisation, seed=settings.seed, progress=progress)
    return task_directions(
        model, unit, public.labels, normalisation, whitening, count=settings.directions, seed=settings.seed
    )


def build_texture(
    settings: ProtectSettings, whitening: Whitening, public: PublicImages, spared: Float[Tensor, "k j"] | None
) -> Texture:
    """The texture; ``spared`` are needed by ``task`` alone."""
    if settings.texture == "white":
        return White(whitening, settings.strength)
    if settings.texture == "covariance":
        return Covariance(whitening, settings.strength, settings.floor)
    if settings.texture == "decoy":
        return Decoy(whitening, PoolDecoys(public.images.float() / 255), settings.share, settings.floor)
    assert spared is not None
    return Task(whitening, spared, settings.strength, settings.floor)


def frozen_protection(
    settings: ProtectSettings, constants: Constants, public: PublicImages, secret: int
) -> tuple[ProtectSettings, FrozenProtection]:
    """The settings at the strength of the constants, and the texture with a site's draws."""
    settings = settings.model_copy(update={"strength": constants.strength})
    texture = build_texture(settings, constants.whitening, public, constants.spared)
    return settings, FrozenProtection(texture, secret, fingerprint(settings, constants, public))


def site_constants(
    settings: ProtectSettings, target: float | None, public: PublicImages, progress: Progress
) -> Constants:
    """Those of :func:`choose_constants`, chosen once a site and kept beside its secret.

    Whatever is protected with the same settings and public images is then drawn the same, here and for ever.
    """
    asked = {"settings": drawing(settings) | {"seed": settings.seed}, "target": target}
    named = hashlib.sha256(json.dumps(asked, sort_keys=True).encode() + hash_of(public.images, public.labels).encode())
    path = state_root() / "protections" / f"{named.hexdigest()}.safetensors"
    kept = read_constants(path, "restore it from a copy; if it is deleted, images that are protected anew differ")
    if kept is not None:
        return kept
    constants = choose_constants(settings, target, public, progress)
    write_constants(path, constants)
    return constants


def choose_constants(
    settings: ProtectSettings, target: float | None, public: PublicImages, progress: Progress
) -> Constants:
    """What the texture is made of, from public images alone; the weakest strength that meets a target.

    Raises:
        ConfigError: for a target that nothing reaches, or that a texture has no strength for.
        DataError: for public images that say too little.
    """
    unit = public.images.float() / 255
    whitening = measure_whitening(unit)
    spared = spared_directions(settings, whitening, public, progress) if settings.texture == "task" else None
    if target is None:
        return Constants(whitening, spared, settings.strength)
    if settings.texture == "decoy":
        raise ConfigError("--target has no strength to choose in a decoy: leave it out, or take another --preset")

    def make(strength: float) -> Texture:
        return build_texture(settings.model_copy(update={"strength": strength}), whitening, public, spared)

    return Constants(whitening, spared, weakest_strength(make, unit, target))


def drawing(settings: ProtectSettings) -> dict[str, Any]:
    """The settings that have a part in x'."""
    return settings.model_dump(mode="json", include={"texture", "strength", "floor", "directions", "share"})


def fingerprint(settings: ProtectSettings, constants: Constants, public: PublicImages) -> str:
    """Of all that decides x' but for image and secret: another one, other draws (:mod:`~.protection.frozen`)."""
    digest = hashlib.sha256(json.dumps(drawing(settings), sort_keys=True).encode())
    pool = {"pool": public.images} if settings.texture == "decoy" else {}
    for name, tensor in sorted({**constants.tensors(), **pool}.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
