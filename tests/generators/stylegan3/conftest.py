"""The naive activation that the fast ones are compared with, and a StyleGAN3 small enough for tests."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator


def naive_activation(
    x: Tensor, up_filter: Tensor, down_filter: Tensor, up: int, down: int, before: int, after: int
) -> Tensor:
    """Step 4 of the specification's section 5 word by word, for automatic differentiation."""
    stuffed = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    stuffed[:, :, ::up, ::up] = x
    fine = naive_filter(F.pad(stuffed, (before, after, before, after)), up_filter) * up**2
    activated = (F.leaky_relu(fine, 0.2) * math.sqrt(2)).clamp(-256, 256)
    return naive_filter(activated, down_filter)[:, :, ::down, ::down]


def naive_filter(x: Tensor, taps: Tensor) -> Tensor:
    kernel = (torch.outer(taps, taps) if taps.ndim == 1 else taps).to(x)
    return F.conv2d(x.flatten(0, 1)[:, None], kernel.flip(0, 1)[None, None])[:, 0].unflatten(0, x.shape[:2])


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def little_generator(seed: int = 0, **arguments: Any) -> StyleGAN3Generator:
    """32 px, 16 feature maps; nothing at its initial value, so that no term is idle."""
    small = {"z_dim": 8, "w_dim": 12, "channel_base": 256, "channel_max": 16}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = StyleGAN3Generator(**(small | arguments))
        for name, parameter in generator.named_parameters():
            if name.endswith("bias") or name == "synthesis.input.affine.weight":
                parameter.data += torch.randn_like(parameter) * 0.3
        for name, buffer in generator.named_buffers():
            if name.endswith("magnitude_ema"):
                buffer.uniform_(0.5, 2.0)
        generator.mapping.w_avg.normal_()
    return generator.eval()
