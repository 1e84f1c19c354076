"""How like a protected image is to each image of a gallery, to an attacker who knows how it was protected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.protection.texture import Texture
from shadow_defense.protection.whitening import Whitening

Looks = Sequence[tuple[Texture, Float[Tensor, "n c h w"]]]
"""Protected images of the same clean ones, in the same order, each under its own texture and by draws of its own."""


def likelihoods(whitening: Whitening, looks: Looks, gallery: Float[Tensor, "m c h w"]) -> Float[Tensor, "n m"]:
    """``-(w' - A w_j)^T S^-1 (w' - A w_j)``: twice the log likelihood of each clean image, up to a constant.

    A and S are of the texture's :meth:`~.Texture.basis_view`, w_j is the basis of a clean image.
    No other score finds the right image more often where the noise is Gaussian and every image as likely
    (docs/protect.md). What lies outside of the directions counts too, where any of it is left.
    """
    seen, expected = compared(whitening, looks, gallery)
    return -torch.cdist(seen, expected).square().float()


def compared(
    whitening: Whitening, looks: Looks, gallery: Float[Tensor, "m c h w"]
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "m q"]]:
    """Protected images and clean ones in coordinates in which minus the likelihood is the squared distance."""
    placed = [_of_one_look(whitening, texture, protected, gallery) for texture, protected in looks]
    seen, expected = (torch.cat(each, dim=1) for each in zip(*placed, strict=True))
    return seen, expected


def _of_one_look(
    whitening: Whitening,
    texture: Texture,
    protected: Float[Tensor, "n c h w"],
    gallery: Float[Tensor, "m c h w"],
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "m q"]]:
    view, clean = texture.basis_view(), texture.basis(gallery)
    noise = view.noise.double()
    # S = L L^T; of single precision S is symmetric to its last digits only.
    root = torch.linalg.cholesky((noise + noise.T) / 2)
    seen, expected = (
        torch.linalg.solve_triangular(root, each.T, upper=False).T
        for each in (
            (whitening.coordinates(protected) - view.offset).double(),
            whitening.coordinates(clean).double() @ view.gain.double().T,
        )
    )
    if not view.outside_gain or whitening.count == len(whitening.mean):
        return seen, expected
    deviation = view.outside_noise**0.5
    outside = whitening.outside(protected).double() / deviation
    kept = view.outside_gain * whitening.outside(clean).double() / deviation
    return torch.cat([seen, outside], dim=1), torch.cat([expected, kept], dim=1)
