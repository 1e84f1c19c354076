"""Images that stand twice, byte for byte, where they should stand once."""

from __future__ import annotations

import hashlib

from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.dataset import ImageSet


def digests(images: UInt8[Tensor, "n c h w"]) -> list[bytes]:
    """One digest an image, equal exactly where all pixels are equal."""
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]


def count_shared(first: UInt8[Tensor, "n c h w"], second: UInt8[Tensor, "m c h w"]) -> int:
    """How many images of ``first`` stand, byte for byte, in ``second`` too."""
    known = set(digests(second))
    return sum(digest in known for digest in digests(first))


def without(images: ImageSet, *others: ImageSet) -> ImageSet:
    """``images`` less those that stand, byte for byte, in one of ``others``."""
    known = {digest for other in others for digest in digests(other.images)}
    return images.subset([index for index, digest in enumerate(digests(images.images)) if digest not in known])
