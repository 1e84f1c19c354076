"""Images of which mean and covariance are known: smooth Gaussian fields around a ramp."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 12


def root_of_covariance() -> Tensor:
    """(d, d), a root of the fields' covariance: five per cent deviation, four pixels wide, and a little white noise."""
    place = torch.arange(SIDE, dtype=torch.float64)
    line = torch.exp(-((place[:, None] - place) ** 2) / 16)
    covariance = 0.05**2 * torch.kron(line, line) + 2e-5 * torch.eye(SIDE * SIDE, dtype=torch.float64)
    return torch.linalg.cholesky(covariance)


def gaussian_images(count: int, seed: int) -> Tensor:
    """(count, 1, 12, 12) images in [0, 1]."""
    draws = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0.3, 0.7, SIDE).expand(SIDE, SIDE).flatten()
    noise = torch.randn(count, SIDE * SIDE, generator=draws, dtype=torch.float64) @ root_of_covariance().T
    return (ramp + noise).float().clamp(0, 1).view(count, 1, SIDE, SIDE)


def draws(seed: int, count: int) -> list[torch.Generator]:
    """A generator for each of ``count`` images."""
    return [torch.Generator().manual_seed(1000 * seed + index) for index in range(count)]
