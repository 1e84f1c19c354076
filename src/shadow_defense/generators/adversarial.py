"""The losses of GAN training (Goodfellow et al. 2014; R1: Mescheder et al. 2018), each a pure function."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def generator_loss(fake_logits: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Non-saturating: ``mean softplus(-D(G(z)))``."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Float[Tensor, " n"], fake_logits: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """``mean softplus(-D(x)) + mean softplus(D(G(z)))``."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Float[Tensor, "n c s s"]) -> Float[Tensor, ""]:
    """``mean_n ||dD(x_n)/dx_n||^2`` at real images, differentiable in the discriminator's parameters."""
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """``p_average <- decay * p_average + (1 - decay) * p_current`` for parameters; buffers are copied."""
    for parameter, new_parameter in zip(average.parameters(), current.parameters(), strict=True):
        parameter.lerp_(new_parameter, 1 - decay)
    for buffer, new_buffer in zip(average.buffers(), current.buffers(), strict=True):
        buffer.copy_(new_buffer)
