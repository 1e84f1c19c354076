"""The fully connected layer with equalised learning rate that every StyleGAN3 network uses (docs/generators.md)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2.0)

Activation = Literal["linear", "lrelu"]


def normalise_second_moment(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """``x / sqrt(mean_j x_j^2 + 1e-8)``: a code of unit mean square (docs/generators.md)."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class FullyConnected(nn.Module):
    """``y = act(x (g W)^T + m b)`` with ``g = m / sqrt(inputs)``, m the learning-rate multiplier.

    ``W ~ N(0, 1) weight_init / m`` and ``b = bias_init / m``, so that Adam's step size, which does not know the
    layer's fan-in, moves every layer alike. ``lrelu`` has slope 0.2 and gain sqrt(2).

    Args:
        bias_init: one value for all outputs, or a list of one value each.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        activation: Activation = "linear",
        learning_rate_multiplier: float = 1.0,
        weight_init: float = 1.0,
        bias_init: float | list[float] = 0.0,
    ) -> None:
        super().__init__()
        self.activation, self.learning_rate_multiplier = activation, learning_rate_multiplier
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (weight_init / learning_rate_multiplier))
        start = torch.as_tensor(bias_init, dtype=torch.float32).expand(outputs).clone()
        self.bias = nn.Parameter(start / learning_rate_multiplier)
        self.weight_gain = learning_rate_multiplier / math.sqrt(inputs)

    def forward(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        y = F.linear(x, self.weight * self.weight_gain, self.bias * self.learning_rate_multiplier)
        return F.leaky_relu(y, LEAKY_SLOPE) * LEAKY_GAIN if self.activation == "lrelu" else y
