"""What tells real images from others without an update: smoothness, and the statistics that a model met in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.models.batchnorm import BatchStatistics


def frobenius_variation(images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """Sum of the un-squared Frobenius norms of horizontal, vertical and both diagonal differences, over the batch."""
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(difference) for difference in differences]).sum()


def statistics_distance(
    fake: Mapping[str, BatchStatistics], real: Mapping[str, BatchStatistics], like: Tensor
) -> Float[Tensor, ""]:
    """``sum over layers of ||mu - mu*||_2 + ||var - var*||_2``; zero for a model without batch norm."""
    distance = like.new_zeros(())
    for name, target in real.items():
        distance = distance + torch.linalg.vector_norm(fake[name].mean - target.mean)
        distance = distance + torch.linalg.vector_norm(fake[name].variance - target.variance)
    return distance
