"""The blur of all that the discriminator sees at the start of configuration R's training (docs/generators.md).

It keeps the discriminator from judging by fine detail alone before the generator has any.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

INITIAL_SIGMA = 10.0


def fading_sigma(images_seen: int, batch_size: int, *, initial: float = INITIAL_SIGMA) -> float:
    """``sigma = max(1 - images_seen / fade, 0) initial``, in pixels, with ``fade = batch_size 200000 / 32`` images.

    >>> [fading_sigma(seen, batch_size=32) for seen in (0, 50_000, 200_000, 300_000)]
    [10.0, 7.5, 0.0, 0.0]
    """
    fade = batch_size * 200_000 / 32
    return max(1 - images_seen / fade, 0.0) * initial


def gaussian_matrix(size: int, sigma: float) -> Float[Tensor, "size size"]:
    """The matrix that blurs a row of ``size`` pixels: ``2^-(d / sigma)^2`` at distances d up to ``floor(3 sigma)``.

    In float64. The taps sum to 1 before the border cuts them, which is what zero padding does. Sigma is where a tap
    is half of the middle one, not a standard deviation.

    >>> gaussian_matrix(3, 0.5)[1].tolist()  # taps 2^-4, 1, 2^-4 over their sum
    [0.05555555555555555, 0.8888888888888888, 0.05555555555555555]
    """
    radius = int(3 * sigma)
    if radius == 0:
        return torch.eye(size, dtype=torch.float64)
    taps = torch.exp2(-(torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma).square())
    position = torch.arange(size)
    offset = position[None, :] - position[:, None]
    matrix = (taps / taps.sum())[offset.clamp(-radius, radius) + radius]
    return torch.where(offset.abs() <= radius, matrix, 0.0)


def blur(images: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """The images blurred along rows and columns, zero outside; below a sigma of 1/3 pixel the images themselves.

    As matrix products rather than convolutions: with 61 taps the kernel is often wider than the image.
    """
    if int(3 * sigma) == 0:
        return images
    rows, columns = (gaussian_matrix(size, sigma).to(images) for size in images.shape[2:])
    return rows @ images @ columns.T
