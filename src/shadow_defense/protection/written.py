"""Protected images as they lie in a folder: mapped where the texture maps, clipped and rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.protection.linear_view import LinearView
from shadow_defense.protection.texture import Texture
from shadow_defense.seeds import named_generator

LEAST_SPREAD = 1e-6
"""Variance of a pixel that is always at the same end of the range."""


class Written(Texture):
    """``z = round(clip(map(x')))``: what an attacker has who was given the folder and not the draws.

    Its view is the closest linear one (Bussgang 1952): clipping pixel p is ``a_p v + b_p + e``, a_p, b_p and the
    variance of e measured on public images that the attacker protects itself.

    Args:
        public: public images in [0, 1].
    """

    def __init__(self, inner: Texture, public: Float[Tensor, "n c h w"]) -> None:
        super().__init__(inner.whitening)
        self.inner = inner
        draws = [named_generator(0, "written", place) for place in range(len(public))]
        before = inner.mapped(inner.protect(public, draws)).flatten(1)
        after = as_written(before)
        spread = before.var(dim=0).clamp_min(LEAST_SPREAD)
        centred = before - before.mean(dim=0)
        self.slope = (centred * after).sum(dim=0) / (len(public) - 1) / spread
        self.level = after.mean(dim=0) - self.slope * before.mean(dim=0)
        self.error = (after - self.slope * before - self.level).var(dim=0)

    def kept(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.inner.kept(images)

    def added(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        return self.inner.added(draws)

    def protect(self, images: Float[Tensor, "n c h w"], draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        return as_written(self.inner.mapped(self.inner.protect(images, draws)))

    def view(self) -> LinearView:
        return self._clipped(self.inner.view())

    def basis(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.inner.basis(images)

    def basis_view(self) -> LinearView:
        return self._clipped(self.inner.basis_view())

    def _clipped(self, view: LinearView) -> LinearView:
        whitening, before = self.whitening, self.inner.through_map(view)
        reads = whitening.directions / whitening.deviations
        # z - mean = a (v - mean) + (a - 1) mean + b + e
        clipped = reads.T @ (self.slope[:, None] * whitening.directions * whitening.deviations)
        offset = ((self.slope - 1) * whitening.mean + self.level) @ reads
        slope = float(self.slope.mean())
        return LinearView(
            clipped @ before.gain,
            clipped @ before.noise @ clipped.T + whitening.noise_covariance(self.error),
            clipped @ before.offset + offset,
            slope * before.outside_gain,
            slope**2 * before.outside_noise + float(self.error.mean()),
        )


def as_written(images: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Clipped to [0, 1] and rounded to 256 levels."""
    return (images.clamp(0, 1) * 255).round() / 255
