"""What an attacker can do who has a decoy in mind: judge it, take it off, estimate what is left."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.lmmse import linear_removal
from shadow_defense.protection.decoy import Decoy


class DecoyTaken:
    """Given a decoy d, ``r = x' - m d`` is a linear look at x whose noise is the floor alone (docs/protect.md)."""

    def __init__(self, texture: Decoy) -> None:
        self.texture, self.whitening = texture, texture.whitening
        view = texture.given_decoy()
        self.offset = view.offset
        self.removal = linear_removal(texture.whitening, [view])
        spread = view.gain.double() @ view.gain.double().T + view.noise.double()
        # K^-1 = L L^T: a length of L^T r is then the misfit.
        self.root = torch.linalg.cholesky(torch.linalg.inv(spread)).float()

    def standardised(self, left: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Coordinates of ``x' - m d`` in which they are standard normal where d is the right decoy."""
        return (self.whitening.coordinates(left) - self.offset) @ self.root

    def misfit(self, protected: Float[Tensor, "n c h w"], decoys: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
        """``r^T K^-1 r``, ``K = A A^T + S``: -2 log likelihood of each decoy, up to a constant."""
        return self.standardised(protected - self.texture.share * decoys).square().sum(dim=1)

    def estimate(
        self, protected: Float[Tensor, "n c h w"], decoys: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """LMMSE of the clean images if these are the decoys, clamped to [0, 1]."""
        return self.removal.images([protected - self.texture.share * decoys])
