"""The public image that served as a decoy, found by trying all of them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.decoy_known import DecoyTaken
from shadow_defense.attacks.removers.remover import Removal, Remover
from shadow_defense.protection.decoy import Decoy, PoolDecoys

LIKELIEST = 16
"""Decoys over which the estimate is averaged."""


class PoolLookup(Remover):
    """``sum_j p_j E[x | x', d_j]``, p_j the probability of each decoy; its doubt is what the likeliest lacks to 1.

    ``p_j ~ exp(-r_j^T K^-1 r_j / 2)``, ``r_j = x' - m d_j``: the conditional mean for a Gaussian image.
    """

    name = "pool look-up"

    def __init__(self, texture: Decoy) -> None:
        assert isinstance(texture.decoys, PoolDecoys)
        self.pool, self.taken, self.share = texture.decoys.pool, DecoyTaken(texture), texture.share
        # Distances in these coordinates are the misfits of all pairs at once.
        self.placed = self.taken.placed((self.share * self.pool).flatten(1))

    def probabilities(self, protected: Float[Tensor, "n c h w"]) -> Float[Tensor, "n m"]:
        """Of every public image having been the decoy."""
        whole = self.taken.standardised(protected)
        return torch.softmax(-0.5 * torch.cdist(whole.double(), self.placed.double()).square(), dim=1).float()

    def remove(self, protected: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Removal:
        likeliest = self.probabilities(protected).topk(min(LIKELIEST, len(self.pool)), dim=1)
        weights = likeliest.values / likeliest.values.sum(dim=1, keepdim=True)
        estimates = torch.zeros_like(protected)
        for rank in range(weights.shape[1]):
            decoys = self.pool[likeliest.indices[:, rank]]
            estimates += weights[:, rank, None, None, None] * self.taken.estimate(protected, decoys)
        return Removal(estimates, 1 - likeliest.values[:, 0])
