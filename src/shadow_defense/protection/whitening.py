"""What public images say of any image of their kind: mean, principal directions, and coordinates along them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.errors import DataError

LEAST_IMAGES = 50
"""Public images below which a covariance says more of the sample than of the kind."""

MOST_DIRECTIONS = 1024
"""Directions that are kept of larger images."""

LEAST_VARIANCE = 1e-6
"""Of a direction along a unit vector; images of 8 bits hold ``1 / (12 * 255**2) = 1.3e-6`` of rounding in each."""


@dataclass(frozen=True)
class Whitening:
    """Coordinates ``w = D^-1 B^T (x - mean)``, in which public images have mean 0 and covariance I (docs/protect.md).

    Attributes:
        mean: the public images' mean, in [0, 1].
        directions: B, orthonormal columns, the leading principal directions first.
        deviations: the diagonal of D, standard deviations along them.
        rest: mean variance along each direction that is not among them.
        shape: channels, height and width of an image.
    """

    mean: Float[Tensor, " d"]
    directions: Float[Tensor, "d k"]
    deviations: Float[Tensor, " k"]
    rest: float
    shape: tuple[int, int, int]

    @property
    def count(self) -> int:
        """k, the number of directions."""
        return len(self.deviations)

    def coordinates(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """``D^-1 B^T (x - mean)``."""
        return (images.flatten(1) - self.mean) @ self.directions / self.deviations

    def images(self, coordinates: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        """``mean + B D w``: the image of these coordinates that has nothing along any other direction."""
        return (self.mean + self.coloured(coordinates)).unflatten(1, self.shape)

    def coloured(self, coordinates: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """``B D w``: Gaussian noise w of covariance I becomes noise of the public images' covariance."""
        return (coordinates * self.deviations) @ self.directions.T

    def outside(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """What of ``x - mean`` lies along none of the directions."""
        centred = images.flatten(1) - self.mean
        return centred - centred @ self.directions @ self.directions.T

    def noise_covariance(self, variance: Float[Tensor, " d"]) -> Float[Tensor, "k k"]:
        """``D^-1 B^T diag(variance) B D^-1``: the covariance in these coordinates of independent noise on pixels."""
        scaled = self.directions / self.deviations
        return scaled.T @ (variance[:, None] * scaled)


def measure_whitening(public: Float[Tensor, "n c h w"]) -> Whitening:
    """Mean and principal directions of public images in [0, 1].

    At most two thirds as many directions as images, and :data:`MOST_DIRECTIONS`: the variance along the last ones
    would be that of the sample alone, and an image outside of it would lie far out along them.

    Raises:
        DataError: with fewer than :data:`LEAST_IMAGES` images, or images that are all alike.
    """
    count = len(public)
    if count < LEAST_IMAGES:
        raise DataError(f"{count} public images: expected at least {LEAST_IMAGES} to measure a covariance; give more")
    flat = public.flatten(1).double()
    mean = flat.mean(dim=0)
    centred = flat - mean
    dimension = flat.shape[1]
    if dimension <= count:
        values, vectors = torch.linalg.eigh(centred.T @ centred / (count - 1))
    else:
        values, inner = torch.linalg.eigh(centred @ centred.T / (count - 1))
        vectors = centred.T @ inner / (values.clamp_min(LEAST_VARIANCE) * (count - 1)).sqrt()
    order = values.argsort(descending=True)[: min(dimension, 2 * count // 3, MOST_DIRECTIONS)]
    chosen = order[values[order] > LEAST_VARIANCE]
    if len(chosen) == 0:
        raise DataError("the public images are all alike: give images that differ, of the kind to protect")
    left = dimension - len(chosen)
    total = centred.square().sum() / (count - 1)
    rest = float((total - values[chosen].sum()).clamp_min(0)) / left if left else 0.0
    channels, height, width = public.shape[1:]
    return Whitening(
        mean.float(),
        vectors[:, chosen].float().contiguous(),
        values[chosen].sqrt().float(),
        rest,
        (channels, height, width),
    )
