"""What images are like, whatever the update says; images in normalised units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.models.batchnorm import BatchStatistics


def anisotropic_variation(images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """``mean |dx| + mean |dy|`` (Geiping et al. 2020)."""
    horizontal = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return horizontal + vertical


def mean_norm(images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """``mean_n ||x_n||_2``."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).mean()


def pulled_no_harder(
    images: Float[Tensor, "n c h w"], most: float
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """The images twice: for what they are to match, and for a prior that pulls at most ``most`` times as hard as that.

    Backwards ``g_match + min(1, most ||g_match||_2 / ||g_prior||_2) g_prior``, the norms over all n images.
    """
    matched, smoothed = _PulledNoHarder.apply(images, most)
    return matched, smoothed


class _PulledNoHarder(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, most: float) -> tuple[Tensor, Tensor]:
        return images.clone(), images.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.most = inputs[1]

    @staticmethod
    def backward(ctx: Any, by_match: Tensor, by_prior: Tensor) -> tuple[Tensor, None]:
        tiny = torch.finfo(by_prior.dtype).tiny
        longest = ctx.most * torch.linalg.vector_norm(by_match)
        return by_match + (longest / torch.linalg.vector_norm(by_prior).clamp_min(tiny)).clamp(max=1) * by_prior, None


def average_statistics(
    steps: Sequence[Mapping[str, BatchStatistics]], weights: Sequence[float]
) -> dict[str, BatchStatistics]:
    """The statistics of several steps, averaged with the weights that the running buffers give them."""
    averaged = {}
    for name, first in steps[0].items():
        mean = torch.stack([w * step[name].mean for w, step in zip(weights, steps, strict=True)]).sum(0)
        variance = torch.stack([w * step[name].variance for w, step in zip(weights, steps, strict=True)]).sum(0)
        averaged[name] = BatchStatistics(mean, variance, first.size)
    return averaged
