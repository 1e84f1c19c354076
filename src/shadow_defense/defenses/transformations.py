"""Named transformations of images in [0, 1], each with a level from 0 (nothing) to 9: what ATS policies are made of.

the paper does not list its pool of 50, so this one is ours: the ranges are those of AutoAugment
(Cubuk et al. 2019), without its operations on colour, which do nothing to grey images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.images import as_bytes

OperationName = Literal[
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "contrast",
    "sharpness",
    "solarize",
    "posterize",
    "equalise",
    "autocontrast",
    "invert",
]

HIGHEST_LEVEL = 9

LARGEST_SHEAR = 0.3
"""Pixels sideways for each pixel from the middle."""

LARGEST_SHIFT = 0.45
"""Of the side."""

LARGEST_ANGLE = math.radians(30)

LARGEST_CHANGE = 0.9
"""Of the factor of brightness, contrast and sharpness, either way from 1."""

COARSEST_BITS = 4
"""Bits a value that the highest level of posterize takes away, of eight."""

Images = Float[Tensor, "n c h w"]
Strengths = Float[Tensor, "n"]


def affine(images: Images, maps: Float[Tensor, "n 2 3"]) -> Images:
    """Bilinear samples at ``maps (x, y, 1)``; outside the image is black.

    Args:
        maps: x and y in pixels from the image's middle; the third column in shares of the side.
    """
    height, width = images.shape[2:]
    # affine_grid counts from -1 to 1 along either side, whatever its length.
    scale = maps.new_tensor([[1.0, height / width, 2.0], [width / height, 1.0, 2.0]])
    grid = F.affine_grid(maps * scale, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _map(strengths: Strengths, **entries: Tensor) -> Float[Tensor, "n 2 3"]:
    maps = torch.eye(2, 3).to(strengths).repeat(len(strengths), 1, 1)
    places = {"xx": (0, 0), "xy": (0, 1), "x": (0, 2), "yx": (1, 0), "yy": (1, 1), "y": (1, 2)}
    for name, values in entries.items():
        maps[:, places[name][0], places[name][1]] = values
    return maps


def shear_x(images: Images, strengths: Strengths) -> Images:
    """Rows slide sideways, the further from the middle the more."""
    return affine(images, _map(strengths, xy=LARGEST_SHEAR * strengths))


def shear_y(images: Images, strengths: Strengths) -> Images:
    """Columns slide up or down."""
    return affine(images, _map(strengths, yx=LARGEST_SHEAR * strengths))


def translate_x(images: Images, strengths: Strengths) -> Images:
    """The image slides sideways; what it leaves is black."""
    return affine(images, _map(strengths, x=LARGEST_SHIFT * strengths))


def translate_y(images: Images, strengths: Strengths) -> Images:
    """The image slides up or down; what it leaves is black."""
    return affine(images, _map(strengths, y=LARGEST_SHIFT * strengths))


def rotate(images: Images, strengths: Strengths) -> Images:
    """About the middle, up to :data:`LARGEST_ANGLE`; the corners that open are black."""
    angles = LARGEST_ANGLE * strengths
    cosine, sine = angles.cos(), angles.sin()
    return affine(images, _map(strengths, xx=cosine, xy=-sine, yx=sine, yy=cosine))


def _factor(strengths: Strengths) -> Float[Tensor, "n 1 1 1"]:
    return (1 + LARGEST_CHANGE * strengths).view(-1, 1, 1, 1)


def brightness(images: Images, strengths: Strengths) -> Images:
    """``f x``, clamped; f is 1 at strength 0."""
    return (_factor(strengths) * images).clamp(0, 1)


def contrast(images: Images, strengths: Strengths) -> Images:
    """``m + f (x - m)`` about the image's mean m, clamped."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + _factor(strengths) * (images - mean)).clamp(0, 1)


def sharpness(images: Images, strengths: Strengths) -> Images:
    """``s + f (x - s)`` about the smoothed image s, clamped; s is a 3x3 mean with five times the weight on x itself."""
    kernel = images.new_tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    channels = images.shape[1]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    smooth = F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)
    return (smooth + _factor(strengths) * (images - smooth)).clamp(0, 1)


def solarize(images: Images, strengths: Strengths) -> Images:
    """What is brighter than 1 - strength becomes its negative."""
    return torch.where(images > 1 - strengths.view(-1, 1, 1, 1), 1 - images, images)


def posterize(images: Images, strengths: Strengths) -> Images:
    """Of eight bits a value, the lowest ``round(4 strength)`` are zeroed."""
    steps = torch.exp2((COARSEST_BITS * strengths).round()).long().view(-1, 1, 1, 1)
    return (as_bytes(images).long() // steps * steps).to(images.dtype) / 255


def equalise(images: Images, strengths: Strengths) -> Images:
    """Each byte becomes the share of the channel's pixels up to it, from 0 for the darkest; flat channels stay."""
    values = as_bytes(images).long().flatten(2)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts = counts.scatter_add(2, values, torch.ones_like(values))
    darkest = counts.gather(2, values.amin(2, keepdim=True))
    below, others = counts.cumsum(2) - darkest, values.shape[2] - darkest
    equalised = (below / others.clamp_min(1)).to(images.dtype).gather(2, values).view_as(images)
    return torch.where(others.unsqueeze(3) > 0, equalised, images)


def autocontrast(images: Images, strengths: Strengths) -> Images:
    """Each channel stretched from 0 to 1; flat channels stay."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / torch.where(high > low, high - low, 1.0), images)


def invert(images: Images, strengths: Strengths) -> Images:
    """``1 - x``, the negative."""
    return 1 - images


@dataclass(frozen=True)
class Operation:
    """A transformation and what its level means.

    Attributes:
        apply: from images in [0, 1] and the strength of each, in [-1, 1] where ``signed``, else in [0, 1].
        signed: the strength gets a random sign.
        levelled: False where every level is the same.
    """

    apply: Callable[[Images, Strengths], Images]
    signed: bool = False
    levelled: bool = True


OPERATIONS: dict[OperationName, Operation] = {
    "shear_x": Operation(shear_x, signed=True),
    "shear_y": Operation(shear_y, signed=True),
    "translate_x": Operation(translate_x, signed=True),
    "translate_y": Operation(translate_y, signed=True),
    "rotate": Operation(rotate, signed=True),
    "brightness": Operation(brightness, signed=True),
    "contrast": Operation(contrast, signed=True),
    "sharpness": Operation(sharpness, signed=True),
    "solarize": Operation(solarize),
    "posterize": Operation(posterize),
    "equalise": Operation(equalise, levelled=False),
    "autocontrast": Operation(autocontrast, levelled=False),
    "invert": Operation(invert, levelled=False),
}

Step = tuple[OperationName, int]
"""An operation and its level, 0 to :data:`HIGHEST_LEVEL`."""

SubPolicy = tuple[Step, ...]
Policy = tuple[SubPolicy, ...]

POOL: tuple[Step, ...] = tuple(
    (name, level)
    for name in get_args(OperationName)
    for level in ((1, 3, 5, 7, 9) if OPERATIONS[name].levelled else (HIGHEST_LEVEL,))
)
"""What a search draws from: 53 steps."""


def apply_policy(images: Images, policy: Sequence[SubPolicy], draws: torch.Generator) -> Images:
    """Each image through one of the sub-policies, chosen uniformly, its operations in order (docs/defenses.md).

    Operations always happen; shears, shifts, rotations, brightness, contrast and sharpness with a random sign.

    Args:
        images: in [0, 1]; what lies outside is clamped by operations on values, not by those on places.
        policy: one sub-policy or more; an empty one leaves the image as it is.
        draws: CPU generator.

    Returns:
        New images; the same draws give the same transformations whatever the pixels.
    """
    count, longest = len(images), max(map(len, policy))
    chosen = torch.randint(len(policy), (count,), generator=draws)
    signs = torch.randint(2, (count, longest), generator=draws) * 2 - 1
    transformed = images.clone()
    for index, steps in enumerate(policy):
        here = (chosen == index).nonzero().flatten()
        if not len(here):
            continue
        for place, (name, level) in enumerate(steps):
            operation = OPERATIONS[name]
            sign = signs[here, place] if operation.signed else torch.ones(len(here))
            strengths = (sign * level / HIGHEST_LEVEL).to(images)
            transformed[here] = operation.apply(transformed[here], strengths)
    return transformed
