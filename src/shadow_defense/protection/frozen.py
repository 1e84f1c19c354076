"""One draw an image, for ever: the same image of the same site is protected the same in all rounds and restarts."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.duplicates import digests
from shadow_defense.seeds import named_generator


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
