"""A protected image as its attacker may describe it: a linear map of the clean one, and noise of known covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LinearView:
    """``w' = A w + offset + e`` in whitened coordinates, e of covariance S and mean 0 (docs/protect.md).

    Attributes:
        gain: A.
        noise: S.
        offset: mean of what is added.
        outside_gain: by what everything along no direction is multiplied; 0 where nothing of it is left.
        outside_noise: variance of what is added to it, along each direction.
    """

    gain: Float[Tensor, "k k"]
    noise: Float[Tensor, "k k"]
    offset: Float[Tensor, " k"]
    outside_gain: float
    outside_noise: float

    def known(self) -> LinearView:
        """The same without noise: what is left to who knows the draws and has taken them off."""
        return LinearView(
            self.gain,
            LEAST_NOISE * torch.eye(len(self.noise), dtype=self.noise.dtype),
            self.offset,
            self.outside_gain,
            LEAST_NOISE,
        )


LEAST_NOISE = 1e-8
"""Variance that stands for none, so that it can be divided by."""
