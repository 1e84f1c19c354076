"""How like a protected image is to each image of a gallery, to an attacker who knows how it was protected."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.protection.linear_view import LinearView
from shadow_defense.protection.whitening import Whitening


def likelihoods(
    whitening: Whitening,
    view: LinearView,
    protected: Float[Tensor, "n c h w"],
    gallery: Float[Tensor, "m c h w"],
) -> Float[Tensor, "n m"]:
    """``-(w' - A w_j)^T S^-1 (w' - A w_j)``: twice the log likelihood of each clean image, up to a constant.

    No other score finds the right image more often where the noise is Gaussian and every image as likely
    (docs/protect.md). What lies outside of the directions counts too, where any of it is left.
    """
    root = torch.linalg.cholesky(torch.linalg.inv(view.noise.double()))
    seen = (whitening.coordinates(protected) - view.offset).double() @ root
    expected = whitening.coordinates(gallery).double() @ view.gain.double().T @ root
    squared = torch.cdist(seen, expected).square()
    if view.outside_gain and whitening.count < len(whitening.mean):
        outside = torch.cdist(
            whitening.outside(protected).double(), view.outside_gain * whitening.outside(gallery).double()
        )
        squared = squared + outside.square() / view.outside_noise
    return -squared.float()
