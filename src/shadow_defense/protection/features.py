"""What a public network sees of an image is kept under noise of its own size, everything else is drawn anew."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.protection.linear_view import LEAST_NOISE, LinearView
from shadow_defense.protection.reader import Reader
from shadow_defense.protection.task import Task
from shadow_defense.protection.whitening import Whitening

MAPPED = 0.1
"""Of what public images have beside the plane that :class:`Reading` maps to: an image with less was mapped.

In bytes a mapped one has a fiftieth or less, and a few that were clipped more; clean radiographs and fundus images
have a third at least.
"""


class MeasuredReader(NamedTuple):
    """phi, and ``P = E[w phi^T]`` over public images: what it tells of an image by what is linear."""

    network: Reader
    told: Float[Tensor, "k j"]


class Reading(nn.Module):
    """``x -> mean + B D V phi(x)`` on images in [0, 1] (:meth:`.Features.kept`); made of public constants alone.

    An image that was mapped stays as it is. In training all were, so that no step pays for the network.
    """

    def __init__(self, texture: Features) -> None:
        super().__init__()
        self.reader = texture.reader
        whitening = texture.whitening
        writes = whitening.coloured(texture.spared.T)
        beside = (whitening.deviations.square().sum() - writes.square().sum()) / writes.shape[1]
        self.register_buffer("near", MAPPED**2 * beside)
        self.register_buffer("mean", whitening.mean)
        self.register_buffer("writes", writes)
        self.register_buffer("plane", torch.linalg.qr(writes.T).Q.contiguous())

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if self.training:
            return images
        mean, plane = self.get_buffer("mean"), self.get_buffer("plane")
        centred = images.flatten(1) - mean
        distance = (centred - centred @ plane @ plane.T).square().mean(dim=1, keepdim=True)
        read = mean + self.reader(images) @ self.get_buffer("writes")
        return torch.where(distance < self.get_buffer("near"), images.flatten(1), read).view_as(images)


class Features(Task):
    """``w' = V (phi(x) + t n1) + (I - V V^T) n2``: as :class:`.Task`, with phi in place of ``V^T w`` (docs/protect.md).

    Args:
        reader: phi, with P.
        shown: V, orthonormal columns in whitened coordinates, along which phi is shown.
        strength, floor: t and s, as of :class:`.Task`.
    """

    def __init__(
        self,
        whitening: Whitening,
        reader: MeasuredReader,
        shown: Float[Tensor, "k j"],
        strength: float,
        floor: float = 0.0,
    ) -> None:
        super().__init__(whitening, shown, strength, floor)
        self.reader, self.told = reader

    def kept(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.whitening.images(self.reader.numbers(images) @ self.spared.T)

    def view(self) -> LinearView:
        """``w' = V P^T w + e``: what of phi is not linear in the image is noise to a linear remover."""
        return self._of_the_image(super().view())

    def known_view(self) -> LinearView:
        return self._of_the_image(super().view().known())

    def basis(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.kept(images)

    def basis_view(self) -> LinearView:
        return super().view()

    def module(self) -> nn.Module:
        return Reading(self).eval()

    def _of_the_image(self, given: LinearView) -> LinearView:
        beside = torch.eye(self.told.shape[1]) - self.told.T @ self.told
        return LinearView(
            self.spared @ self.told.T,
            given.noise + self.spared @ (beside + LEAST_NOISE * torch.eye(len(beside))) @ self.spared.T,
            given.offset,
            given.outside_gain,
            given.outside_noise,
        )


def told_by(reader: Reader, whitening: Whitening, public: Float[Tensor, "n c h w"]) -> Float[Tensor, "k j"]:
    """``P = E[w phi^T]`` over public images."""
    return whitening.coordinates(public).T @ reader.numbers(public) / (len(public) - 1)
