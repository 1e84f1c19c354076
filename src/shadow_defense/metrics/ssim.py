"""Structural similarity with a Gaussian window, as Wang et al. defined it."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.errors import DataError
from shadow_defense.metrics.inputs import check_same_shape
from shadow_defense.metrics.region import region_mean

WINDOW = 11
SIGMA = 1.5
# (K L)^2 with K1 = 0.01, K2 = 0.03 and a data range L of 1.
C1 = 0.01**2
C2 = 0.03**2

_BORDER = WINDOW // 2
_TRUTHS_AT_ONCE = 16


@cache
def _window_matrix(size: int) -> Float[Tensor, "size size"]:
    """The Gaussian window along one axis as a matrix, mirrored at the borders with the edge pixel repeated."""
    offsets = torch.arange(-_BORDER, _BORDER + 1, dtype=torch.float64)
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights /= weights.sum()
    row = torch.arange(size)[:, None].expand(-1, WINDOW)
    column = row + offsets.long()
    column = torch.where(column < 0, -1 - column, column)
    column = torch.where(column >= size, 2 * size - 1 - column, column)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.index_put_((row, column), weights.expand(size, -1), accumulate=True)


def _local_mean(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    # A matrix product along each axis: 4 times faster than a float64 convolution on CPU at 224 px.
    rows, columns = _window_matrix(images.shape[2]), _window_matrix(images.shape[3])
    return rows.to(images.device) @ images @ columns.to(images.device).T


def _similarity(
    first: Float[Tensor, "a c h w"],
    second: Float[Tensor, "b c h w"],
    first_moments: tuple[Tensor, Tensor],
    second_moments: tuple[Tensor, Tensor],
) -> Float[Tensor, "n h w"]:
    """SSIM maps of two batches that are broadcast against each other, given local means and mean squares."""
    mean_1, square_1 = first_moments
    mean_2, square_2 = second_moments
    variances = square_1 - mean_1.square() + square_2 - mean_2.square()
    covariance = _local_mean(first * second) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + C1) / (mean_1.square() + mean_2.square() + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean(dim=1)


def _moments(images: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
    return _local_mean(images), _local_mean(images.square())


def _check_size(images: Float[Tensor, "n c h w"]) -> None:
    height, width = images.shape[2:]
    if min(height, width) < WINDOW:
        raise DataError(
            f"images of {height} x {width} px are smaller than the SSIM window of {WINDOW} px: use larger images"
        )


def _inner_mean(maps: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    return maps[:, _BORDER:-_BORDER, _BORDER:-_BORDER].mean(dim=(1, 2))


def ssim_map(reconstructions: Float[Tensor, "n c h w"], truths: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    """SSIM at every pixel, averaged over the channels, in [-1, 1].

    ``(2 m1 m2 + C1)(2 s12 + C2) / ((m1² + m2² + C1)(s1² + s2² + C2))`` with means, variances and covariance
    under an 11 x 11 Gaussian window of sigma 1.5, population covariance, data range 1 (Wang et al. 2004,
    "Image quality assessment: from error visibility to structural similarity"). Within 5 px of the border the
    window sees the image mirrored, as scikit-image does. Computed in float64: in float32 the variances of flat
    regions, common in medical images, are rounding noise beside C2.

    Args:
        reconstructions, truths: in [0, 1], at least 11 px high and wide.

    Raises:
        DataError: on unequal shapes and on images smaller than the window.
    """
    check_same_shape(reconstructions, truths)
    _check_size(truths)
    first, second = reconstructions.double(), truths.double()
    return _similarity(first, second, _moments(first), _moments(second)).to(truths.dtype)


def ssim_mean(
    maps: Float[Tensor, "n h w"], region: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None = None
) -> Float[Tensor, " n"]:
    """One number per SSIM map: the mean without the 5 px border, or the mean over a region.

    Without a region this is scikit-image's mean. A region keeps its border pixels, since a lesion at the rim of
    the image, or most of a 28 px image, would otherwise not be scored; so a region of all pixels gives a
    slightly different number than no region. NaN where an image's region is empty.
    """
    return _inner_mean(maps) if region is None else region_mean(maps, region)


def ssim(
    reconstructions: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "n c h w"],
    region: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None = None,
) -> Float[Tensor, " n"]:
    """SSIM of each pair, in [-1, 1]; higher is closer, 1 where the pair is equal.

    See :func:`ssim_map` for the formula, the ranges and the errors, :func:`ssim_mean` for the region.

    >>> image = torch.linspace(0, 1, 144).view(1, 1, 12, 12)
    >>> ssim(image, image)
    tensor([1.])
    """
    return ssim_mean(ssim_map(reconstructions, truths), region)


def pairwise_ssim(reconstructions: Float[Tensor, "n c h w"], truths: Float[Tensor, "m c h w"]) -> Float[Tensor, "n m"]:
    """SSIM of every reconstruction against every truth; errors as in :func:`ssim_map`."""
    _check_size(truths)
    result = reconstructions.new_empty(len(reconstructions), len(truths))
    for column in torch.arange(len(truths)).split(_TRUTHS_AT_ONCE):
        second = truths[column].double()
        second_moments = _moments(second)
        for row, reconstruction in enumerate(reconstructions.double()):
            first = reconstruction[None]
            maps = _similarity(first, second, _moments(first), second_moments)
            result[row, column] = _inner_mean(maps).to(result.dtype)
    return result
