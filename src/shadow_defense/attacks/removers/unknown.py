"""What an attacker makes of images of which nobody says how they were protected."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.learned import pairs_found, train_remover
from shadow_defense.attacks.removers.remover import Removal, Remover
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress


class AsGiven(Remover):
    """The protected image itself, clipped to [0, 1]; it has no doubt."""

    name = "as given"

    def remove(self, protected: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Removal:
        return Removal(protected.clamp(0, 1), torch.zeros(len(protected)))


def learned_from_halves(
    protected: Float[Tensor, "n c h w"],
    clean: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    classes: int,
    *,
    seed: int,
    steps: int,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> Float[Tensor, "n c h w"]:
    """Of each half what a remover makes that was trained on the other half's pairs.

    Without a copy of the defense the attacker can make no pairs; it is granted as many as there are to be had.
    """
    even = torch.arange(len(clean)) % 2 == 0
    estimates = torch.zeros_like(clean)
    for own in (even, ~even):
        pairs = pairs_found(protected[~own], clean[~own], labels[~own])
        remover = train_remover(AsGiven(), pairs, classes, seed=seed, steps=steps, progress=progress, device=device)
        estimates[own] = remover.remove(protected[own], labels[own]).estimates
    return estimates
