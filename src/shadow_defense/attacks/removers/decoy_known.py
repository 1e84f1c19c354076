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
        self.texture, whitening = texture, texture.whitening
        self.whitening, view = whitening, texture.given_decoy()
        self.removal = linear_removal(whitening, [view])
        spread = view.gain.double() @ view.gain.double().T + view.noise.double()
        # K^-1 = L L^T: a length of L^T r is then the misfit.
        self.root = torch.linalg.cholesky(torch.linalg.inv(spread)).float()
        self.outside = (view.outside_gain**2 * whitening.rest + view.outside_noise) ** -0.5
        # x' - m d - mean = (1 - m) (x - mean) - m mean + s n
        self.constant = self.placed(-(texture.share.flatten() * whitening.mean)[None])

    def placed(self, differences: Float[Tensor, "n d"]) -> Float[Tensor, "n q"]:
        """Differences of images in coordinates in which a length is a misfit.

        What lies along none of the directions counts too: public images hardly differ there, and decoys give themselves
        away by it.
        """
        whitening = self.whitening
        along = differences @ whitening.directions
        inside = along / whitening.deviations @ self.root
        if whitening.count == len(whitening.mean):
            return inside
        return torch.cat([inside, self.outside * (differences - along @ whitening.directions.T)], dim=1)

    def standardised(self, left: Float[Tensor, "n c h w"]) -> Float[Tensor, "n q"]:
        """``x' - m d`` in these coordinates, standard normal where d is the right decoy."""
        return self.placed(left.flatten(1) - self.whitening.mean) - self.constant

    def misfit(self, protected: Float[Tensor, "n c h w"], decoys: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """``r^T K^-1 r``, ``K = A A^T + S``: -2 log likelihood of each decoy, up to a constant."""
        return self.standardised(protected - self.texture.share * decoys).square().sum(dim=1)

    def estimate(
        self, protected: Float[Tensor, "n c h w"], decoys: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """LMMSE of the clean images if these are the decoys, clamped to [0, 1]."""
        return self.removal.images([protected - self.texture.share * decoys])
