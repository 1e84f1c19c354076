"""The mapping network: latent codes z to styles w (docs/generators.md)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.stylegan3.linear import FullyConnected, normalise_second_moment

LEARNING_RATE_MULTIPLIER = 0.01
AVERAGE_DECAY = 0.998


class MappingNetwork(nn.Module):
    """``w = FC_lrelu(FC_lrelu([z / rms(z), FC(c) / rms(FC(c))]))``, with a moving average of w.

    Args:
        z_dim, c_dim, w_dim: lengths of the latent code, the condition (0 for none) and the style.
        layers: number of fully connected layers.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, layers: int = 2) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.layers = z_dim, c_dim, w_dim, layers
        self.register_buffer("w_avg", torch.zeros(w_dim))
        if c_dim > 0:
            self.embed = FullyConnected(c_dim, w_dim)
        inputs = z_dim + (w_dim if c_dim > 0 else 0)
        for index in range(layers):
            layer = FullyConnected(inputs, w_dim, activation="lrelu", learning_rate_multiplier=LEARNING_RATE_MULTIPLIER)
            self.add_module(f"fc{index}", layer)
            inputs = w_dim

    def forward(
        self, z: Float[Tensor, "n z"], c: Float[Tensor, "n c"] | None = None, *, update_averages: bool = False
    ) -> Float[Tensor, "n w"]:
        """Styles of latent codes.

        Raises:
            GeneratorError: when a conditional network gets no condition.
        """
        x = normalise_second_moment(z)
        if self.c_dim > 0:
            if c is None:
                raise GeneratorError(
                    f"a conditional generator was given no condition: give c of shape (n, {self.c_dim}), one-hot labels"
                )
            x = torch.cat([x, normalise_second_moment(self.embed(c))], dim=1)
        for index in range(self.layers):
            x = getattr(self, f"fc{index}")(x)
        if update_averages:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, AVERAGE_DECAY))
        return x


def truncate(
    styles: Float[Tensor, "n layers w"], average: Float[Tensor, " w"], psi: float, cutoff: int | None = None
) -> Float[Tensor, "n layers w"]:
    """``lerp(w_avg, w, psi)`` in the first ``cutoff`` layers (all by default): less variety, fewer poor images."""
    if psi == 1:
        return styles
    moved = average.lerp(styles[:, :cutoff], psi)
    return moved if cutoff is None else torch.cat([moved, styles[:, cutoff:]], dim=1)
