"""White noise: independent on every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.protection.linear_view import LinearView
from shadow_defense.protection.texture import Texture, normal
from shadow_defense.protection.whitening import Whitening


class White(Texture):
    """``x' = x + s m n``, n standard normal on every pixel (docs/protect.md).

    Args:
        strength: s > 0, on the scale on which images lie in [0, 1].
        placement: m, the weight of each pixel; None: 1 everywhere.
    """

    def __init__(self, whitening: Whitening, strength: float, placement: Float[Tensor, "h w"] | None = None) -> None:
        super().__init__(whitening)
        self.deviation = strength * weight_of_pixels(placement, whitening)

    def kept(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return images

    def added(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        return self.deviation * normal(draws, *self.whitening.shape)

    def view(self) -> LinearView:
        variance = self.deviation.flatten().square()
        count = self.whitening.count
        noise = self.whitening.noise_covariance(variance)
        return LinearView(torch.eye(count), noise, torch.zeros(count), 1.0, float(variance.mean()))


def weight_of_pixels(placement: Float[Tensor, "h w"] | None, whitening: Whitening) -> Float[Tensor, "c h w"]:
    """The placement in all channels; 1 everywhere for None."""
    return (torch.ones(whitening.shape[1:]) if placement is None else placement).expand(whitening.shape)
