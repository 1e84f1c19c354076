"""Noise shaped like the images themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.protection.linear_view import LinearView
from shadow_defense.protection.texture import Texture, normal, white_floor
from shadow_defense.protection.white import weight_of_pixels
from shadow_defense.protection.whitening import Whitening


class Covariance(Texture):
    """``x' = mean + B D w + t m (B D n1) + s n2``: Gaussian noise with the public images' covariance (docs/protect.md).

    Of the image only what lies along the directions is kept: the noise would leave the rest of it bare.

    Args:
        strength: t > 0, in units of the images' own deviations.
        floor: s >= 0, white noise on top, on the scale of [0, 1].
        placement: m, the weight of each pixel in the first noise; None: 1 everywhere.
    """

    def __init__(
        self,
        whitening: Whitening,
        strength: float,
        floor: float = 0.0,
        placement: Float[Tensor, "h w"] | None = None,
    ) -> None:
        super().__init__(whitening)
        self.deviation = strength * weight_of_pixels(placement, whitening)
        self.floor = floor

    def kept(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.whitening.images(self.whitening.coordinates(images))

    def added(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        whitening = self.whitening
        shaped = whitening.coloured(normal(draws, whitening.count)).unflatten(1, whitening.shape)
        return self.deviation * shaped + white_floor(self.floor, draws, *whitening.shape)

    def view(self) -> LinearView:
        whitening, weight = self.whitening, self.deviation.flatten()
        # D^-1 B^T m B D: what the placement makes of noise in these coordinates.
        placed = (whitening.directions.T @ (weight[:, None] * whitening.directions)) * (
            whitening.deviations / whitening.deviations[:, None]
        )
        floor = torch.full_like(whitening.mean, self.floor**2)
        noise = placed @ placed.T + whitening.noise_covariance(floor)
        return LinearView(torch.eye(whitening.count), noise, torch.zeros(whitening.count), 0.0, 1.0)
