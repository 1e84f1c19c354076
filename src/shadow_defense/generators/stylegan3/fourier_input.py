"""The input of the synthesis network: a plane of sine waves, moved and turned by the style (docs/generators.md)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.generators.stylegan3.linear import FullyConnected
from shadow_defense.generators.stylegan3.schedule import Band


class FourierInput(nn.Module):
    """Fourier features on the canvas, mixed by a learned matrix: an input that is continuous in space.

    ``transform`` is the user's: a (3, 3) inverse affine map of the canvas, in units of the image's side.
    """

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_dim: int, band: Band) -> None:
        super().__init__()
        self.band = band
        directions = torch.randn(band.channels, 2)
        radii = directions.norm(dim=1, keepdim=True)
        # |v| is Rayleigh distributed, so exp(-r^2/4) is the square root of a uniform number: uniform in the disc.
        frequencies = directions / radii * torch.exp(-radii.square() / 4) * band.cutoff
        self.weight = nn.Parameter(torch.randn(band.channels, band.channels))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", frequencies)
        self.register_buffer("phases", torch.rand(band.channels) - 0.5)
        self.affine = FullyConnected(w_dim, 4, weight_init=0.0, bias_init=[1.0, 0.0, 0.0, 0.0])

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c size size"]:
        """Feature maps; the style gives a rotation (cos, sin) and a translation, the user's transform is applied last.

        Waves beyond the band fade out linearly up to the Nyquist rate, so that a transform cannot cause aliasing.
        """
        placed = self._placement(w)
        phases = self.phases + (self.freqs @ placed[:, :2, 2:]).squeeze(2)
        frequencies = self.freqs @ placed[:, :2, :2]
        beyond = (frequencies.norm(dim=2) - self.band.cutoff) / (self.band.rate / 2 - self.band.cutoff)
        amplitudes = (1 - beyond).clamp(0, 1)
        size = self.band.size
        axis = (torch.arange(size, device=w.device, dtype=w.dtype) + 0.5 - size / 2) / self.band.rate
        # The wave at (x, y) is the sine of a sum, so its table is built from one row and one column of angles.
        across = (frequencies[:, :, 0, None] * axis + phases[:, :, None]) * (2 * math.pi)
        along = frequencies[:, :, 1, None] * axis * (2 * math.pi)
        waves = across.sin()[:, :, None, :] * along.cos()[:, :, :, None]
        waves = waves + across.cos()[:, :, None, :] * along.sin()[:, :, :, None]
        mixing = self.weight * (amplitudes / math.sqrt(self.band.channels))[:, None, :]
        return (mixing @ waves.flatten(2)).unflatten(2, (size, size))

    def _placement(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n 3 3"]:
        turn = self.affine(w)
        turn = turn / turn[:, :2].norm(dim=1, keepdim=True)
        cosine, sine, right, down = turn.unbind(1)
        zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
        rotation = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], dim=1).view(-1, 3, 3)
        translation = torch.stack([one, zero, -right, zero, one, -down, zero, zero, one], dim=1).view(-1, 3, 3)
        return rotation @ translation @ self.transform
