"""From settings and constants to a texture, and to a site's protection."""

from __future__ import annotations

import hashlib
import json

from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.generators.interface import Generator
from shadow_defense.protection.constants import Constants
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys, PoolDecoys
from shadow_defense.protection.features import Features
from shadow_defense.protection.frozen import FrozenProtection
from shadow_defense.protection.settings import TextureSettings
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White


def build_texture(
    settings: TextureSettings,
    constants: Constants,
    public: UInt8[Tensor, "n c h w"],
    generator: Generator | None = None,
) -> Texture:
    """The texture at the strength of the constants; ``public`` are the decoys where no generator makes them."""
    whitening, strength = constants.whitening, constants.strength
    if settings.texture == "white":
        return White(whitening, strength)
    if settings.texture == "covariance":
        return Covariance(whitening, strength, settings.floor)
    if settings.texture == "decoy":
        decoys = PoolDecoys(public.float() / 255) if generator is None else GeneratedDecoys(generator)
        return Decoy(whitening, decoys, settings.share, settings.floor)
    assert constants.spared is not None
    if settings.texture == "features":
        assert constants.reader is not None
        return Features(whitening, constants.reader, constants.spared, strength, settings.floor)
    return Task(whitening, constants.spared, strength, settings.floor)


def freeze(
    settings: TextureSettings,
    constants: Constants,
    public: UInt8[Tensor, "n c h w"],
    secret: int,
    generator: Generator | None = None,
) -> FrozenProtection:
    """The texture with the draws of a site."""
    return FrozenProtection(
        build_texture(settings, constants, public, generator),
        secret,
        fingerprint(settings, constants, public, generator),
    )


def fingerprint(
    settings: TextureSettings,
    constants: Constants,
    public: UInt8[Tensor, "n c h w"],
    generator: Generator | None = None,
) -> str:
    """Of all that decides x' but for image and secret: another one, other draws (:mod:`~.protection.frozen`)."""
    drawing = settings.drawing() | {"strength": constants.strength}
    digest = hashlib.sha256(json.dumps(drawing, sort_keys=True).encode())
    decoys: dict[str, Tensor] = {"pool": public} if settings.texture == "decoy" else {}
    if generator is not None:
        decoys = {f"generator.{name}": tensor for name, tensor in generator.state_dict().items()}
    for name, tensor in sorted({**constants.tensors(), **decoys}.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
