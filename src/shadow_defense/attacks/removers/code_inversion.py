"""The code of a generated decoy, found by the generator's own gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.decoy_known import DecoyTaken
from shadow_defense.attacks.removers.remover import Removal, Remover
from shadow_defense.placement import CPU
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys
from shadow_defense.seeds import named_generator

STARTS, TRIAL, ITERATIONS, LEARNING_RATE = 4, 40, 200, 0.05
"""From each start a trial of so many iterations; the best of each image goes on for all."""

AT_ONCE = 128


class CodeInversion(Remover):
    """MAP of the code, ``argmin_z r^T K^-1 r + |z|^2`` with ``r = x' - m G(z)``, then LMMSE of x given the decoy.

    Adam from several starts, of which the best goes on; its objective is the doubt.

    Args:
        known: codes that the attacker was told, to start from in place of drawn ones.
        device: where the generator computes.
    """

    name = "code inversion"

    def __init__(
        self, texture: Decoy, *, seed: int, known: Float[Tensor, "n z"] | None = None, device: torch.device = CPU
    ) -> None:
        assert isinstance(texture.decoys, GeneratedDecoys)
        self.decoys, self.taken = texture.decoys.on(device), DecoyTaken(texture)
        self.seed, self.known = seed, known

    def remove(self, protected: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Removal:
        estimates, doubts = [], []
        for chunk, part in enumerate(torch.arange(len(protected)).split(AT_ONCE)):
            codes, objective = self._codes(protected[part], part, chunk)
            with torch.no_grad():
                estimates.append(self.taken.estimate(protected[part], self.decoys.of_codes(codes)))
            doubts.append(objective)
        return Removal(torch.cat(estimates), torch.cat(doubts))

    def _codes(
        self, protected: Float[Tensor, "n c h w"], part: Int64[Tensor, " n"], chunk: int
    ) -> tuple[Float[Tensor, "n z"], Float[Tensor, " n"]]:
        if self.known is not None:
            return self._descended(protected, self.known[part], ITERATIONS)
        size = self.decoys.generator.z_dim
        tried = []
        for start in range(STARTS):
            draws = named_generator(self.seed, "code inversion", chunk, start)
            codes = 0.5 * torch.randn(len(protected), size, generator=draws)
            tried.append(self._descended(protected, codes, TRIAL))
        best = torch.stack([objective for _, objective in tried]).argmin(dim=0)
        codes = torch.stack([codes for codes, _ in tried])[best, torch.arange(len(protected))]
        return self._descended(protected, codes, ITERATIONS)

    def _descended(
        self, protected: Float[Tensor, "n c h w"], codes: Float[Tensor, "n z"], iterations: int
    ) -> tuple[Float[Tensor, "n z"], Float[Tensor, " n"]]:
        codes = codes.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([codes], lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
        for _ in range(iterations):
            optimiser.zero_grad()
            self._objective(protected, codes).sum().backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            return codes.detach(), self._objective(protected, codes)

    def _objective(self, protected: Float[Tensor, "n c h w"], codes: Float[Tensor, "n z"]) -> Float[Tensor, " n"]:
        return self.taken.misfit(protected, self.decoys.of_codes(codes)) + codes.square().sum(dim=1)
