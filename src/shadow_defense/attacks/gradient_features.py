"""Updates of any size as vectors that a small network can read (docs/attacks.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.seeds import named_generator


@dataclass(frozen=True)
class FeatureHashing:
    """``h_j = sum of g_i / ||g||_2 over the entries i in bin j``: unit norm, then each entry to a random bin, no sign.

    Every bin gets equally many entries, but for one: drawn one by one (as published) some bins would stay empty. Linear
    but for the norm, which is taken out because learning rates and clipping change it.

    Attributes:
        bins: the bin of each entry.
        size: number of bins.

    >>> hashing = FeatureHashing(torch.tensor([0, 1, 0]), 2)
    >>> [round(each, 3) for each in hashing(torch.tensor([[3.0, 0.0, 4.0]]))[0].tolist()]
    [1.4, 0.0]
    """

    bins: Int64[Tensor, " d"]
    size: int

    @classmethod
    def drawn(cls, entries: int, size: int, seed: int) -> FeatureHashing:
        """``entries`` entries into ``size`` bins; no more entries than bins stay as they are."""
        if entries <= size:
            return cls(torch.arange(entries), entries)
        order = torch.randperm(entries, generator=named_generator(seed, "feature hashing"))
        return cls(order % size, size)

    def __call__(self, updates: Float[Tensor, "m d"]) -> Float[Tensor, "m f"]:
        """A row of features for each row of entries; zeros for a row of zeros."""
        # Squares of late updates are too small for their sum: scaled by the largest entry first.
        scaled = updates / updates.abs().amax(1, keepdim=True).clamp_min(1e-30)
        unit = scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1e-30)
        return unit.new_zeros(len(unit), self.size).index_add_(1, self.bins.to(unit.device), unit)


@dataclass(frozen=True)
class Standardisation:
    """``(h - mean) / (deviation + 0.01 typical deviation)`` of each feature, so that all weigh about alike.

    Not published: gradients of layers differ by orders of magnitude, and with it a network learns in hundreds of steps
    what takes it tens of thousands without.
    """

    mean: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]

    @classmethod
    def measured(cls, features: Float[Tensor, "m f"]) -> Standardisation:
        """Of the training features; one that hardly varies is not blown up to noise."""
        variance, mean = torch.var_mean(features, dim=0, unbiased=False)
        return cls(mean, variance.sqrt() + 0.01 * variance.mean().sqrt() + 1e-12)

    def __call__(self, features: Float[Tensor, "m f"]) -> Float[Tensor, "m f"]:
        return (features - self.mean) / self.scale
