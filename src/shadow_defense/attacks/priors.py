"""What images are like, whatever the update says; images in normalised units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
