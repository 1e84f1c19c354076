"""Adaptive discriminator augmentation, for small public sets (ADA: Karras et al. 2020, section 3 and appendix B).

Real and generated images are augmented alike before the discriminator sees them, by operations that each happen with
probability p below 1, so that the generator learns the images and not their augmentations.

Of the paper's operations these stay, for grey medical images: flips, shifts, scale, rotation, brightness, contrast.
Rotations are small where the paper's go all round: organs have an upright. Samples are bilinear where the paper
filters at twice the resolution.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

LARGEST_SHIFT = 0.125
"""Of the side; uniform, whole pixels."""

SCALE_DEVIATION = 0.2
"""Standard deviation of log2 of the scale."""

LARGEST_ANGLE = math.radians(10)
"""Uniform, either way."""

CONTRAST_DEVIATION = 0.5
"""Standard deviation of log2 of the factor."""

BRIGHTNESS_DEVIATION = 0.2
"""Standard deviation of the offset, in units of images in [-1, 1]."""


def augment(images: Float[Tensor, "n c h w"], probability: float, draws: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Each image through a random one of each operation, each with ``probability``; differentiable any number of times.

    Flips left to right happen with half of ``probability``, as a coin decides the flip that is drawn. An image for
    which nothing is drawn comes back exactly; at probability 0 all do, and nothing is drawn. Values may leave [-1, 1].

    Args:
        images: in [-1, 1].
        probability: p in [0, 1], see :func:`adapted_probability`.
    """
    if probability == 0:
        return images
    count, _, height, width = images.shape
    moved = resample(images, draw_geometry(count, height, width, probability, draws).to(images))
    happens = torch.rand(2, count, 1, 1, 1, generator=draws) < probability
    normal = torch.randn(2, count, 1, 1, 1, generator=draws)
    contrast = torch.exp2(happens[0] * normal[0] * CONTRAST_DEVIATION).to(images)
    brightness = (happens[1] * normal[1] * BRIGHTNESS_DEVIATION).to(images)
    return moved * contrast + brightness


def draw_geometry(
    count: int, height: int, width: int, probability: float, draws: torch.Generator
) -> Float[Tensor, "n 2 3"]:
    """Where the pixels of each augmented image come from: ``flip rotation(angle) / scale`` and the shift in pixels."""
    happens = torch.rand(4, count, generator=draws) < probability
    coin, across, down, turn = torch.rand(4, count, generator=draws)
    flip = torch.where(happens[0] & (coin < 0.5), -1.0, 1.0)
    shift_x, shift_y = (
        torch.round((2 * share - 1) * LARGEST_SHIFT * side) * happens[1]
        for share, side in ((across, width), (down, height))
    )
    scale = torch.exp2(torch.randn(count, generator=draws) * SCALE_DEVIATION * happens[2])
    angle = (2 * turn - 1) * LARGEST_ANGLE * happens[3]
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    return torch.stack(
        [torch.stack([flip * cosine, -flip * sine, shift_x], dim=1), torch.stack([sine, cosine, shift_y], dim=1)],
        dim=1,
    )


def resample(images: Float[Tensor, "n c h w"], maps: Float[Tensor, "n 2 3"]) -> Float[Tensor, "n c h w"]:
    """Bilinear samples at ``maps (x, y, 1)``, in pixels from the image's middle; outside, the image's mirror images.

    The mirrors stand at the outer edges of the border pixels. ``torch.nn.functional.grid_sample`` is the same map, but
    not every supported torch differentiates its gradient, which R1 at augmented images asks for.

    >>> image = torch.tensor([[1.0, 2.0, 3.0]]).view(1, 1, 1, 3)
    >>> shift = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    >>> resample(image, shift).flatten().tolist()
    [2.0, 3.0, 3.0]
    """
    count, channels, height, width = images.shape
    down, across = torch.meshgrid(
        torch.arange(height).to(images) - (height - 1) / 2,
        torch.arange(width).to(images) - (width - 1) / 2,
        indexing="ij",
    )
    place = torch.stack([across, down, torch.ones_like(down)]).flatten(1)
    # Elementwise, not a matrix product: whole-pixel maps then stay exact whatever the product's precision.
    x, y = (maps[:, :, :, None] * place).sum(dim=2).unbind(dim=1)
    x, y = x + (width - 1) / 2, y + (height - 1) / 2
    left, top = x.floor(), y.floor()
    pixels = images.flatten(2)
    total = torch.zeros_like(pixels)
    for row, row_share in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_share in ((left, 1 - (x - left)), (left + 1, x - left)):
            source = reflect(row.long(), height) * width + reflect(column.long(), width)
            value = pixels.gather(2, source[:, None].expand(-1, channels, -1))
            total = total + value * (row_share * column_share)[:, None]
    return total.view(count, channels, height, width)


def reflect(index: Int[Tensor, "*shape"], size: int) -> Int[Tensor, "*shape"]:
    """Indices outside ``[0, size)`` back into it, mirrored at the outer edges: ``-1 -> 0, size -> size - 1``.

    >>> reflect(torch.arange(-3, 6), 3).tolist()
    [2, 1, 0, 0, 1, 2, 2, 1, 0]
    """
    within = index.remainder(2 * size)
    return torch.minimum(within, 2 * size - 1 - within)


def adapted_probability(
    probability: float,
    mean_sign: float,
    images_between: int,
    *,
    speed_images: int = 500_000,
    target: float = 0.6,
) -> float:
    """``p <- clip(p + sign(mean_sign - target) images_between / speed_images, 0, 1)`` (ADA, Karras et al. 2020).

    ``mean_sign`` is the mean of sign(D(x)) over the real images since the last change: near 1 the discriminator knows
    them by heart, and more augmentation is due. The upper bound is ours: p is a probability.

    Args:
        images_between: real images since the last change (ADA's: 4 batches).
        speed_images: images that take p from 0 to 1.

    >>> adapted_probability(0.5, mean_sign=0.9, images_between=5000)
    0.51
    """
    direction = (mean_sign > target) - (mean_sign < target)
    return min(max(probability + direction * images_between / speed_images, 0.0), 1.0)
