"""The mean of a per-pixel quantity over a part of the image."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def region_mean(
    values: Float[Tensor, "n h w"], region: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Mean of each image's values over its region: ``sum(region * values) / sum(region)``.

    The divisor is the region's own size. The paper's published evaluation multiplies by the mask and then
    divides by all pixels, which makes a small region look well protected or well rebuilt by its size alone.

    Args:
        values: per-pixel quantity in any range.
        region: true or a weight >= 0 where a pixel counts. NaN comes back for an image whose region is empty.

    >>> import torch
    >>> values = torch.tensor([[[4.0, 100.0], [2.0, 100.0]]])
    >>> region_mean(values, torch.tensor([[[True, False], [True, False]]]))
    tensor([3.])
    """
    weights = region.to(values.dtype)
    return (values * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))
