"""StyleGAN3's synthesis network in the plain way: the other side of benchmarks/generator.py.

One convolution with its own weights for each image, zeros stuffed between the samples, every filter run at the full
rate, automatic differentiation throughout: what a straightforward PyTorch implementation does. Same parameters,
same images as ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from shadow_defense.generators.stylegan3.filtered_activation import CLAMP
from shadow_defense.generators.stylegan3.linear import LEAKY_GAIN, LEAKY_SLOPE
from shadow_defense.generators.stylegan3.synthesis import OUTPUT_SCALE, SynthesisLayer, SynthesisNetwork


def _filter(x: Tensor, taps: Tensor) -> Tensor:
    c = x.shape[1]
    kernels = [taps[None, :], taps[:, None]] if taps.ndim == 1 else [taps]
    for kernel in kernels:
        x = F.conv2d(x, kernel.expand(c, 1, *kernel.shape), groups=c)
    return x


def _modulated(layer: SynthesisLayer, x: Tensor, style: Tensor) -> Tensor:
    n, size, reach = len(x), x.shape[-1], layer.plan.kernel - 1
    weight = layer.weight
    if layer.plan.to_image:
        style = style / math.sqrt(style.shape[1])
        kernels = weight[None] * style[:, None, :, None, None]
    else:
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        style = style * style.square().mean().rsqrt()
        kernels = weight[None] * style[:, None, :, None, None]
        kernels = kernels * (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    kernels = kernels * layer.magnitude_ema.rsqrt()
    y = F.conv2d(x.reshape(1, -1, size, size), kernels.flatten(0, 1), padding=reach, groups=n)
    return y.unflatten(1, (n, -1))[0]


def _layer(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    y = _modulated(layer, x, layer.affine(w)) + layer.bias[:, None, None]
    plan = layer.plan
    if layer.up_filter is None or layer.down_filter is None:
        return y.clamp(-CLAMP, CLAMP)
    n, c, size, _ = y.shape
    stuffed = F.pad(y.view(n, c, size, 1, size, 1), (0, plan.up - 1, 0, 0, 0, plan.up - 1))
    before, after = plan.padding
    padded = F.pad(stuffed.view(n, c, size * plan.up, size * plan.up), (before, after, before, after))
    y = _filter(padded, layer.up_filter * plan.up)
    y = (F.leaky_relu(y, LEAKY_SLOPE) * LEAKY_GAIN).clamp(-CLAMP, CLAMP)
    return _filter(y, layer.down_filter)[:, :, :: plan.down, :: plan.down]


def plain_synthesis(network: SynthesisNetwork, ws: Tensor) -> Tensor:
    """The images of ``network(ws)``, computed the plain way."""
    x = network.input(ws[:, 0])
    for index, plan in enumerate(network.plans):
        x = _layer(getattr(network, plan.name), x, ws[:, index + 1])
    return x * OUTPUT_SCALE


def convolution_rate(threads_busy_seconds: float = 1.0) -> float:
    """GFLOP/s of a 3x3 convolution of 128 channels at 36 px, batch 4: what the machine can do at best."""
    import time

    x, weight = torch.randn(4, 128, 36, 36), torch.randn(128, 128, 3, 3)
    work = 2 * 4 * 128 * 128 * 9 * 38 * 38
    best, until = math.inf, time.perf_counter() + threads_busy_seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        F.conv2d(x, weight, padding=2)
        best = min(best, time.perf_counter() - started)
    return work / best / 1e9
