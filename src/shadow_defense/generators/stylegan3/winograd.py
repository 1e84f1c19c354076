"""Convolutions of 3 x 3 on the CPU with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3)."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from shadow_defense.generators.stylegan3.compilable import compilable
from shadow_defense.generators.stylegan3.threads import run_shares
from shadow_defense.generators.stylegan3.winograd_layout import BLOCK, FILTER_TRANSFORM, LANES

MAX_COLUMNS = (BLOCK - LANES) // 2
"""Tiles in a row of the widest plane."""

MIN_CHANNELS = 48
"""Below it the transforms cost what the products save (benchmarks)."""

CHUNK = 128
"""Tiles that are multiplied at once, at the least: more don't fit the caches, fewer slow the products down."""


def convolve(x: Float[Tensor, "n i h w"], weight: Float[Tensor, "o i k k"], padding: int) -> Float[Tensor, "n o h2 w2"]:
    """``F.conv2d(x, weight, padding=padding)``, by Winograd's F(4 x 4, 3 x 3) where that is faster.

    That is with numba, for 32-bit numbers on the CPU, 3 x 3 kernels, at least :data:`MIN_CHANNELS` channels in and
    out and planes of up to 300 pixels; everything else is torch's. Errors are 1e-6 of the output's norm, where the
    direct sum's are 2e-7. A NaN or infinity of x makes NaN of the 4 x 4 tiles that it touches. Differentiable once in
    x and weight, by autograd; the transforms of torch.func (grad, vmap) cannot see through it, functional_call can.
    """
    if not faster(x, weight, padding):
        return F.conv2d(x, weight, padding=padding)
    output: Tensor = _apply_uncompiled(x, weight, padding)
    return output


def faster(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether :func:`convolve` takes Winograd's way."""
    usual = weight.shape[2:] == (3, 3) and 0 <= padding <= 2 and min(weight.shape[:2]) >= MIN_CHANNELS
    sides = min(x.shape[2:]) + 2 * padding >= 3 and (x.shape[3] + 5) // 4 <= MAX_COLUMNS
    return usual and sides and len(x) > 0 and compilable(x, weight)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return _correlate(x, weight, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.padding = inputs
        to_x, to_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if to_weight else None, weight if to_x else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x = None if weight is None else _correlate(gradient, weight.flip(2, 3).transpose(0, 1), 2 - ctx.padding)
        return to_x, None if x is None else _weight_gradient(gradient, x, ctx.padding), None


def _correlate(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    # Here, not above: numba is slow to import, and most processes make no images.
    from shadow_defense.generators.stylegan3.winograd_tiles import tiles_to_planes

    n, _, height, width = x.shape
    output = torch.empty(n, weight.shape[0], height + 2 * padding - 2, width + 2 * padding - 2)
    rows, columns = _grid(output)
    o, i = weight.shape[:2]
    filters = torch.mm(FILTER_TRANSFORM, weight.reshape(-1, 9).T, out=_workspace("filters", 36, o * i)).view(36, o, i)
    images = -(-CHUNK // (rows * columns))
    for part, result in zip(x.split(images), output.split(images), strict=True):
        tiles = _to_tiles(part, padding, rows, columns, gradient=False)
        products = torch.bmm(filters, tiles, out=_workspace("products", 36, o, tiles.shape[2]))
        n, c, height, width = result.shape
        arguments = products.view(-1).numpy(), c, products.shape[2], result.view(-1).numpy()
        run_shares(n * c, tiles_to_planes, *arguments, height, width, rows, columns)
    return output


def _weight_gradient(gradient: Tensor, x: Tensor, padding: int) -> Tensor:
    """``Gᵀ [sum over tiles of (A dy Aᵀ) ∘ (Bᵀ d B)] G``."""
    rows, columns = _grid(gradient)
    o, i = gradient.shape[1], x.shape[1]
    images = -(-CHUNK // (rows * columns))
    total = _workspace("filters", 36, o, i).zero_()
    for outer, inner in zip(gradient.split(images), x.split(images), strict=True):
        left = _to_tiles(outer, 0, rows, columns, gradient=True)
        total.baddbmm_(left, _to_tiles(inner, padding, rows, columns, gradient=False).transpose(1, 2))
    return (FILTER_TRANSFORM.T @ total.view(36, -1)).T.reshape(o, i, 3, 3)


# torch.compile cannot look into numba's functions: it runs around them.
_apply_uncompiled = torch.compiler.disable(_Convolution.apply)

_kept = threading.local()


def _workspace(role: str, *shape: int) -> Tensor:
    """Memory of this thread that later calls overwrite: the system takes as long to hand out new as to fill it."""
    buffer = getattr(_kept, role, None)
    if buffer is None or len(buffer) < math.prod(shape):
        # A buffer made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            buffer = torch.empty(math.prod(shape))
        setattr(_kept, role, buffer)
    return buffer[: math.prod(shape)].view(shape)


def _grid(output: Tensor) -> tuple[int, int]:
    return -(-output.shape[2] // 4), -(-output.shape[3] // 4)


def _to_tiles(
    planes: Float[Tensor, "n c h w"], padding: int, rows: int, columns: int, *, gradient: bool
) -> Float[Tensor, "36 c tiles"]:
    from shadow_defense.generators.stylegan3.winograd_tiles import planes_to_tiles

    n, c, height, width = planes.shape
    tiles = _workspace("gradient" if gradient else "tiles", 36, c, n * rows * columns)
    arguments = planes.detach().contiguous().view(-1).numpy(), height, width, tiles.view(-1).numpy()
    run_shares(n * c, planes_to_tiles, *arguments, c, tiles.shape[2], padding, rows, columns, gradient)
    return tiles
