"""Where GIFD's variables may go: the l1 ball around their start, and the sphere of their start's norm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def project_to_l1_ball(points: Float[Tensor, " m *rest"], radii: Float[Tensor, " m"]) -> Float[Tensor, " m *rest"]:
    """The nearest point to each row with ``||d||_1 <= radius``, by soft thresholding.

    With |d| sorted downwards and rho the last index k with ``d_k > (sum_{j<=k} d_j - radius) / k``, the threshold is
    ``theta = (sum_{j<=rho} d_j - radius) / rho`` (docs/attacks.md). Radii are above 0.

    >>> project_to_l1_ball(torch.tensor([[3.0, -1.0], [0.2, 0.1]]), torch.tensor([2.0, 1.0]))
    tensor([[2.0000, -0.0000],
            [0.2000, 0.1000]])
    """
    flat = points.flatten(1)
    sizes = flat.abs()
    ordered = sizes.sort(dim=1, descending=True).values
    counts = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    thresholds = (ordered.cumsum(1) - radii[:, None]) / counts
    last = (ordered > thresholds).sum(1, keepdim=True) - 1
    theta = thresholds.gather(1, last).clamp_min(0)
    return (flat.sign() * (sizes - theta).clamp_min(0)).view_as(points)


def retract_to_sphere(points: Float[Tensor, " m *rest"], norms: Float[Tensor, " m"]) -> Float[Tensor, " m *rest"]:
    """Each row scaled to its Euclidean norm."""
    flat = points.flatten(1)
    current = torch.linalg.vector_norm(flat, dim=1).clamp_min(1e-12)
    return (flat * (norms / current)[:, None]).view_as(points)
