"""Peak signal-to-noise ratio of images in [0, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.metrics.inputs import check_same_shape
from shadow_defense.metrics.region import region_mean

# 100 dB: far above any lossy reconstruction, and finite, so that one exact image leaves a batch's mean finite.
LEAST_SQUARED_ERROR = 1e-10

# Bounds the temporary differences to some 40 MB at 224 px.
_TRUTHS_AT_ONCE = 64


def decibels(mean_squared_error: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``-10 log10(mse)`` for a peak of 1, with the error floored at 1e-10, hence never above 100 dB.

    >>> decibels(torch.tensor([0.01, 0.0]))
    tensor([ 20., 100.])
    """
    return -10 * mean_squared_error.clamp_min(LEAST_SQUARED_ERROR).log10()


def squared_error_map(
    reconstructions: Float[Tensor, "n c h w"], truths: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n h w"]:
    """Squared error of each pixel, averaged over the channels. Raises :class:`DataError` on unequal shapes."""
    check_same_shape(reconstructions, truths)
    return (reconstructions - truths).square().mean(dim=1)


def psnr(
    reconstructions: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "n c h w"],
    region: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None = None,
) -> Float[Tensor, " n"]:
    """PSNR of each pair in dB, ``10 log10(1 / mse)``; higher is closer, 100 dB where the pair is equal.

    Args:
        reconstructions, truths: in [0, 1]; the peak is 1.
        region: true or a weight where a pixel counts; the error is averaged over these pixels only. NaN where
            an image's region is empty.

    Raises:
        DataError: on unequal shapes.

    >>> psnr(torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2))
    tensor([20.])
    """
    errors = squared_error_map(reconstructions, truths)
    return decibels(errors.mean(dim=(1, 2)) if region is None else region_mean(errors, region))


def pairwise_psnr(reconstructions: Float[Tensor, "n c h w"], truths: Float[Tensor, "m c h w"]) -> Float[Tensor, "n m"]:
    """PSNR in dB of every reconstruction against every truth."""
    errors = reconstructions.new_empty(len(reconstructions), len(truths))
    for column in torch.arange(len(truths)).split(_TRUTHS_AT_ONCE):
        for row, reconstruction in enumerate(reconstructions):
            errors[row, column] = (truths[column] - reconstruction).square().mean(dim=(1, 2, 3))
    return decibels(errors)
