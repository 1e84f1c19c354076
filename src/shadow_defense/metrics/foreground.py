"""Every image metric over the whole image, inside the foreground, and outside of it."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.metrics.lpips import Lpips
from shadow_defense.metrics.psnr import decibels, squared_error_map
from shadow_defense.metrics.region import region_mean
from shadow_defense.metrics.ssim import ssim_map, ssim_mean

REGIONS = ("whole", "inside", "outside")


def inside_and_outside(
    masks: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None,
) -> dict[str, Float[Tensor, "n h w"]]:
    """The two regions that a foreground mask (true, or a weight in [0, 1]) divides the image into.

    >>> import torch
    >>> inside_and_outside(torch.tensor([[[True, False]]]))
    {'inside': tensor([[[1., 0.]]]), 'outside': tensor([[[0., 1.]]])}
    """
    if masks is None:
        return {}
    inside = masks.float()
    return {"inside": inside, "outside": 1 - inside}


def psnr_by_region(
    reconstructions: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "n c h w"],
    masks: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None,
) -> dict[str, Float[Tensor, " n"]]:
    """PSNR in dB: ``whole`` and, with masks, ``inside`` and ``outside``; NaN where a region is empty."""
    errors = squared_error_map(reconstructions, truths)
    regions = inside_and_outside(masks).items()
    return {"whole": decibels(errors.mean(dim=(1, 2)))} | {
        name: decibels(region_mean(errors, region)) for name, region in regions
    }


def ssim_by_region(
    reconstructions: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "n c h w"],
    masks: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None,
) -> dict[str, Float[Tensor, " n"]]:
    """SSIM: ``whole`` and, with masks, ``inside`` and ``outside``; NaN where a region is empty."""
    maps = ssim_map(reconstructions, truths)
    regions = inside_and_outside(masks).items()
    return {"whole": ssim_mean(maps)} | {name: ssim_mean(maps, region) for name, region in regions}


def lpips_by_region(
    model: Lpips,
    reconstructions: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "n c h w"],
    masks: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None,
) -> dict[str, Float[Tensor, " n"]]:
    """LPIPS: ``whole`` and, with masks, ``inside`` and ``outside``; NaN where a region is empty."""
    distances, maps = model(reconstructions, truths)
    regions = inside_and_outside(masks).items()
    return {"whole": distances} | {name: region_mean(maps, region) for name, region in regions}
