"""Most of the image replaced by another one: a generator's image of a secret code, or one of a public pool."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.generators.interface import Generator
from shadow_defense.placement import device_of
from shadow_defense.protection.linear_view import LEAST_NOISE, LinearView
from shadow_defense.protection.texture import Texture, normal, white_floor
from shadow_defense.protection.white import weight_of_pixels
from shadow_defense.protection.whitening import Whitening
from shadow_defense.seeds import named_generator

SAMPLES = 1024
"""Decoys of which mean and covariance are measured."""


class Decoys(ABC):
    """Where decoys come from; everybody knows it, the draws apart."""

    @abstractmethod
    def drawn(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        """One decoy in [0, 1] for each generator."""

    def sample(self) -> Float[Tensor, "n c h w"]:
        """Decoys of codes that anybody may draw."""
        return self.drawn([named_generator(0, "decoys", index) for index in range(SAMPLES)])


class PoolDecoys(Decoys):
    """Public images, each as likely."""

    def __init__(self, pool: Float[Tensor, "m c h w"]) -> None:
        self.pool = pool

    def chosen(self, draws: Sequence[torch.Generator]) -> Int64[Tensor, " n"]:
        """Their places in the pool."""
        return torch.stack([torch.randint(len(self.pool), (), generator=each) for each in draws])

    def drawn(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        return self.pool[self.chosen(draws)]

    def sample(self) -> Float[Tensor, "n c h w"]:
        return self.pool


class GeneratedDecoys(Decoys):
    """A generator's images of standard normal codes."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator.eval().requires_grad_(False)

    def codes(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n z"]:
        """The codes, as they are drawn."""
        return normal(draws, self.generator.z_dim)

    def of_codes(self, codes: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        """``(G(z) + 1) / 2``, in [0, 1], in the memory of the codes."""
        return (self.generator(codes.to(device_of(self.generator))).to(codes.device) + 1) / 2

    def on(self, device: torch.device) -> GeneratedDecoys:
        """The same of a copy of the generator that computes there."""
        return GeneratedDecoys(copy.deepcopy(self.generator).to(device))

    def drawn(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        with torch.no_grad():
            return self.of_codes(self.codes(draws))


class Decoy(Texture):
    """``x' = (1 - m) x + m d + s n``, d the decoy, n white (docs/protect.md).

    Args:
        share: the greatest m, in (0, 1).
        floor: s >= 0, on the scale of [0, 1].
        placement: m of each pixel as a share of the greatest; None: 1 everywhere.
    """

    def __init__(
        self,
        whitening: Whitening,
        decoys: Decoys,
        share: float,
        floor: float,
        placement: Float[Tensor, "h w"] | None = None,
    ) -> None:
        super().__init__(whitening)
        self.decoys, self.floor = decoys, floor
        self.share = share * weight_of_pixels(placement, whitening)

    def kept(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (1 - self.share) * images

    def added(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        return self.share * self.decoys.drawn(draws) + white_floor(self.floor, draws, *self.whitening.shape)

    def given_decoy(self) -> LinearView:
        """The view of who knows the decoy and has taken it off: what is left of the mean is an offset."""
        whitening, kept = self.whitening, (1 - self.share).flatten()
        gain = (whitening.directions.T @ (kept[:, None] * whitening.directions)) * (
            whitening.deviations / whitening.deviations[:, None]
        )
        floor = torch.full_like(whitening.mean, max(self.floor**2, LEAST_NOISE))
        # (x' - m d) - mean = (1 - m) (x - mean) - m mean + s n
        offset = self._coordinates_of(-self.share.flatten() * whitening.mean)
        noise = whitening.noise_covariance(floor)
        return LinearView(gain, noise, offset, float(kept.mean()), float(floor[0]))

    def known_view(self) -> LinearView:
        return self.given_decoy().known()

    def view(self) -> LinearView:
        """The decoy counts as Gaussian noise of the decoys' mean and covariance."""
        given = self.given_decoy()
        # In double precision: a generator's decoys may lie along few directions, and along the others nothing hides.
        replaced = self._coordinates_of((self.share * self.decoys.sample()).flatten(1)).double()
        mean = replaced.mean(dim=0)
        spread = (replaced - mean).T @ (replaced - mean) / (len(replaced) - 1)
        rest = float(self.share.mean()) ** 2 * self.whitening.rest
        return LinearView(
            given.gain,
            given.noise + spread,
            given.offset + mean.float(),
            given.outside_gain,
            given.outside_noise + rest,
        )

    def _coordinates_of(self, differences: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        return differences @ self.whitening.directions / self.whitening.deviations
