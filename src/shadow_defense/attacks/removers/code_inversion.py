"""The code of a generated decoy, found by the generator's own gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.decoy_known import DecoyTaken
from shadow_defense.attacks.removers.remover import Removal, Remover
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys
from shadow_defense.seeds import named_generator

STARTS, ITERATIONS, LEARNING_RATE = 4, 200, 0.05
AT_ONCE = 128


class CodeInversion(Remover):
    """MAP of the code, ``argmin_z r^T K^-1 r + |z|^2`` with ``r = x' - m G(z)``, then LMMSE of x given the decoy.

    Adam from several starts, the one of the least objective counts, which is also the doubt.

    Args:
        known: codes that the attacker was told, to start from in place of drawn ones.
    """

    name = "code inversion"

    def __init__(self, texture: Decoy, *, seed: int, known: Float[Tensor, "n z"] | None = None) -> None:
        assert isinstance(texture.decoys, GeneratedDecoys)
        self.decoys, self.taken = texture.decoys, DecoyTaken(texture)
        self.seed, self.known = seed, known

    def remove(self, protected: Float[Tensor, "n c h w"], labels: Int64[Tensor, "n"]) -> Removal:
        estimates, doubts = [], []
        for chunk, part in enumerate(torch.arange(len(protected)).split(AT_ONCE)):
            codes, objective = self._codes(protected[part], part, chunk)
            with torch.no_grad():
                estimates.append(self.taken.estimate(protected[part], self.decoys.of_codes(codes)))
            doubts.append(objective)
        return Removal(torch.cat(estimates), torch.cat(doubts))

    def _codes(
        self, protected: Float[Tensor, "n c h w"], part: Int64[Tensor, "n"], chunk: int
    ) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n"]]:
        size = self.decoys.generator.z_dim
        best = torch.zeros(len(protected), size)
        least = torch.full((len(protected),), torch.inf)
        for start in range(1 if self.known is not None else STARTS):
            draws = named_generator(self.seed, "code inversion", chunk, start)
            codes = 0.5 * torch.randn(len(protected), size, generator=draws)
            if self.known is not None:
                codes = self.known[part].clone()
            codes.requires_grad_(True)
            optimiser = torch.optim.Adam([codes], lr=LEARNING_RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, ITERATIONS)
            for _ in range(ITERATIONS):
                optimiser.zero_grad()
                self._objective(protected, codes).sum().backward()
                optimiser.step()
                schedule.step()
            with torch.no_grad():
                objective = self._objective(protected, codes)
            better = objective < least
            best[better], least[better] = codes.detach()[better], objective[better]
        return best, least

    def _objective(self, protected: Float[Tensor, "n c h w"], codes: Float[Tensor, "n z"]) -> Float[Tensor, "n"]:
        return self.taken.misfit(protected, self.decoys.of_codes(codes)) + codes.square().sum(dim=1)
