"""One draw an image, for ever: the same image of the same site is protected the same in all rounds and restarts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.data.duplicates import digests
from shadow_defense.protection.texture import Texture
from shadow_defense.seeds import named_generator

AT_ONCE = 256
"""Images in a chunk, so that the draws of a large set need not be in memory together."""


def frozen_draws(secret: int, fingerprint: str, images: UInt8[Tensor, "n c h w"]) -> list[torch.Generator]:
    """A generator for each image, named by what the image holds and by how it is protected.

    By its content and not by its name: two draws for one image, which stands twice or under a new name, would be two
    looks at it, and one draw for two images under one name would tell their difference. Another setting draws anew for
    the same reason: ``x + t1 n`` and ``x + t2 n`` give both x and n away.

    Args:
        secret: of the site, at least :data:`shadow_defense.seeds.SECRET` where anything leaves.
        fingerprint: of the texture and everything that it is made of.
    """
    return [named_generator(secret, "protection", fingerprint, digest.hex()) for digest in digests(images)]


@dataclass(frozen=True)
class FrozenProtection:
    """A texture with the draws of one site.

    Attributes:
        secret, fingerprint: as in :func:`frozen_draws`.
    """

    texture: Texture
    secret: int
    fingerprint: str

    def protected(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """x' of every image, neither clipped nor rounded."""
        chunks = [
            self.texture.protect(part.float() / 255, frozen_draws(self.secret, self.fingerprint, part))
            for part in images.split(AT_ONCE)
        ]
        return torch.cat(chunks)

    def trained_on(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """What stands in an image's place in the training: x', mapped where the texture maps, in [0, 1]."""
        return self.texture.mapped(self.protected(images)).clamp(0, 1)

    def tested_on(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Clean images as the model is given them at test time, in [0, 1]."""
        return self.texture.tested(images.float() / 255).clamp(0, 1)
