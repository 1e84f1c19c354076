"""What protecting a batch gives."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Protection:
    """A protected batch and why the noise went where it went; images and noise in normalised units.

    Attributes:
        images: what to train on: the clean images plus ``noise``.
        noise: what was added.
        noise_map: N3, the map before the foreground was spared; positive, sums to 1 per image.
        cam: Grad-CAM++ in [0, 1], or None where the foreground is not spared.
        rebuilt: what the shadow generator rebuilt, or None in rounds after the shadow's.
    """

    images: Float[Tensor, "n c h w"]
    noise: Float[Tensor, "n c h w"]
    noise_map: Float[Tensor, "n 1 h w"]
    cam: Float[Tensor, "n h w"] | None
    rebuilt: Float[Tensor, "n c h w"] | None
