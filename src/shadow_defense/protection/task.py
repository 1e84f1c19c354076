"""What the diagnosis needs is kept under noise of its own size, everything else is drawn anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.protection.linear_view import LEAST_NOISE, LinearView
from shadow_defense.protection.texture import Texture, normal, white_floor
from shadow_defense.protection.whitening import Whitening


class Projection(nn.Module):
    """``x -> mean + B D V V^T w`` on images in [0, 1] (:meth:`.Task.tested`); made of public constants alone."""

    def __init__(self, texture: Task) -> None:
        super().__init__()
        whitening = texture.whitening
        self.register_buffer("mean", whitening.mean)
        self.register_buffer("reads", whitening.directions / whitening.deviations @ texture.spared)
        self.register_buffer("writes", whitening.coloured(texture.spared.T))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mean = self.get_buffer("mean")
        spared = (images.flatten(1) - mean) @ self.get_buffer("reads")
        return (mean + spared @ self.get_buffer("writes")).view_as(images)


class Task(Texture):
    """``w' = V (V^T w + t n1) + (I - V V^T) n2``, ``x' = mean + B D w' + s n3`` (docs/protect.md).

    Args:
        spared: V, orthonormal columns in whitened coordinates (:func:`~.directions.task_directions`).
        strength: t > 0, in units of the images' own deviations along each direction.
        floor: s >= 0, white noise on top, on the scale of [0, 1].
    """

    maps = True

    def __init__(self, whitening: Whitening, spared: Float[Tensor, "k j"], strength: float, floor: float = 0.0) -> None:
        super().__init__(whitening)
        self.spared, self.strength, self.floor = spared, strength, floor

    def kept(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.whitening.images(self.whitening.coordinates(images) @ self.spared @ self.spared.T)

    def added(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        whitening = self.whitening
        on_spared = self.strength * normal(draws, self.spared.shape[1]) @ self.spared.T
        anew = normal(draws, whitening.count)
        noise = on_spared + anew - anew @ self.spared @ self.spared.T
        return whitening.coloured(noise).unflatten(1, whitening.shape) + white_floor(
            self.floor, draws, *whitening.shape
        )

    def view(self) -> LinearView:
        count = self.whitening.count
        onto = self.spared @ self.spared.T
        floor = self.whitening.noise_covariance(torch.full_like(self.whitening.mean, self.floor**2))
        noise = self.strength**2 * onto + torch.eye(count) - onto + floor
        return LinearView(onto, noise, torch.zeros(count), 0.0, 1.0)

    def through_map(self, view: LinearView) -> LinearView:
        scale = 1 / (1 + self.strength**2)
        onto = scale * self.spared @ self.spared.T
        nothing = LEAST_NOISE * torch.eye(len(onto))
        return LinearView(onto @ view.gain, onto @ view.noise @ onto + nothing, view.offset, 0.0, LEAST_NOISE)

    def mapped(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """``mean + B D V V^T w / (1 + t^2)``: of x' the LMMSE where there is no floor."""
        spared = self.whitening.coordinates(images) @ self.spared @ self.spared.T
        return self.whitening.images(spared / (1 + self.strength**2))

    def tested(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """``mean + B D V V^T w``, what is kept: shrunk as x' is, it would hardly move an answer (docs/protect.md)."""
        return self.kept(images)

    def module(self) -> nn.Module:
        return Projection(self).eval()
