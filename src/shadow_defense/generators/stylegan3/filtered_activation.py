"""The alias-free activation: up-sample, leaky ReLU, clamp, down-sample, as one operation (docs/generators.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from shadow_defense.generators.stylegan3.compilable import compilable
from shadow_defense.generators.stylegan3.filters import separable_terms
from shadow_defense.generators.stylegan3.linear import LEAKY_GAIN, LEAKY_SLOPE
from shadow_defense.generators.stylegan3.phase_planes import CLAMPED, TAPS, Geometry, geometry
from shadow_defense.generators.stylegan3.schedule import LayerPlan

CLAMP = 256.0
NEGATIVE_SLOPE, POSITIVE_SLOPE = LEAKY_SLOPE * LEAKY_GAIN, LEAKY_GAIN
CHUNK = 2**24
"""Up-sampled numbers that the matrix form holds at once."""


@dataclass
class Resampling:
    """The fixed part of a layer's activation: its filters as separable terms, and where the samples lie.

    Attributes:
        up_terms, down_terms: rows and columns, (2, rank, taps) each; the gain ``up`` of each axis is in the former.
        inputs, outputs: side of the planes before and after.
        before, after: zeros around the zero-stuffed plane; negative crops.
    """

    up_terms: Float[Tensor, "2 rank_up taps_up"]
    down_terms: Float[Tensor, "2 rank_down taps_down"]
    up: int
    down: int
    inputs: int
    outputs: int
    before: int
    after: int
    _matrices: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, plan: LayerPlan, up_filter: Tensor, down_filter: Tensor, cropped: int, inputs: int) -> Resampling:
        """The activation of a layer whose convolution has left out ``cropped`` samples before its ``inputs``."""
        before = plan.padding[0] + plan.up * cropped
        samples = (plan.writes.size - 1) * plan.down + plan.down_taps
        after = samples + plan.up_taps - 1 - inputs * plan.up - before
        # In 32 bits whatever the network's numbers are: the matrices are rounded to those only when made.
        up_terms, down_terms = (separable_terms(kernel.float().cpu()) for kernel in (up_filter, down_filter))
        return cls(up_terms * plan.up, down_terms, plan.up, plan.down, inputs, plan.writes.size, before, after)

    @property
    def samples(self) -> int:
        """Side of the up-sampled planes."""
        return self.inputs * self.up + self.before + self.after - self.up_terms.shape[-1] + 1

    @property
    def layer(self) -> Geometry:
        return geometry(self.inputs, self.outputs, self.up, self.down, self.before, self.after)

    def matrices(
        self, like: Tensor
    ) -> tuple[Float[Tensor, "2 rank_up inner inputs"], Float[Tensor, "2 rank_down outputs inner"]]:
        """The filters as banded matrices: ``U = sum_r rows_r X columns_r^T``, and the same from U to the output."""
        key = (like.device, like.dtype)
        if key not in self._matrices:
            taps = self.up_terms.shape[-1]
            v, q = torch.arange(self.samples)[:, None], torch.arange(self.inputs)
            raising = _banded(self.up_terms, self.up * q - v + self.before, taps)
            x, u = torch.arange(self.outputs)[:, None], torch.arange(self.samples)
            lowering = _banded(self.down_terms, u - self.down * x, self.down_terms.shape[-1])
            self._matrices[key] = (raising.to(like), lowering.to(like))
        return self._matrices[key]


def _banded(terms: Tensor, tap: Tensor, taps: int) -> Tensor:
    return torch.where((tap >= 0) & (tap < taps), terms[..., tap.clamp(0, taps - 1)], 0.0)


def filtered_activation(
    x: Float[Tensor, "n c h w"], gain: Float[Tensor, "n c"], bias: Float[Tensor, " c"], resampling: Resampling
) -> Float[Tensor, "n c s s"]:
    """``down(clamp(sqrt(2) leaky(up(gain x + bias)), +-256))``, the leaky ReLU run where it causes no aliasing.

    Differentiable once in x, gain and bias, by autograd (not by the transforms of torch.func). Between forward and
    backward one byte is kept for each up-sampled sample, in place of the three float planes that automatic
    differentiation would keep. 32-bit numbers on the CPU take the compiled planes of polyphase.py where numba is
    installed, everything else products with banded matrices.
    """
    keep = torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad or bias.requires_grad)
    apply = _apply_uncompiled if _compiled(x, resampling) else _FilteredActivation.apply
    output: Tensor = apply(x, gain, bias, resampling, keep)[0]
    return output


class _FilteredActivation(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gain: Tensor, bias: Tensor, resampling: Resampling, keep: bool) -> tuple[Tensor, Tensor]:
        run = _forward_planes if _compiled(x, resampling) else _forward_matrices
        return run(x, gain, bias, resampling, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gain, _, ctx.resampling, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, gain, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, codes = ctx.saved_tensors
        run: Callable[..., tuple[Tensor, Tensor, Tensor]]
        run = _backward_planes if _compiled(x, ctx.resampling) else _backward_matrices
        return (*run(gradient, x, gain, codes, ctx.resampling), None, None)


# torch.compile cannot look into numba's functions: it runs around them.
_apply_uncompiled = torch.compiler.disable(_FilteredActivation.apply)


def _compiled(x: Tensor, resampling: Resampling) -> bool:
    taps = resampling.up_terms.shape[-1], resampling.down_terms.shape[-1]
    usual = taps == (TAPS * resampling.up, TAPS * resampling.down)
    return usual and compilable(x)


def _forward_planes(x: Tensor, gain: Tensor, bias: Tensor, resampling: Resampling, keep: bool) -> tuple[Tensor, Tensor]:
    from shadow_defense.generators.stylegan3.polyphase import run_planes

    layer, (n, c) = resampling.layer, x.shape[:2]
    shape = (n * c, layer.phases, layer.phases, layer.columns * layer.pitch)
    codes = torch.empty(shape if keep else (1, 1, 1, 1), dtype=torch.uint8)
    output = torch.empty(n, c, resampling.outputs, resampling.outputs)
    _run(
        run_planes, layer, False, x, gain, bias.expand(n, c), codes, keep, output, output, torch.empty(n * c, 2),
        resampling.up_terms, resampling.down_terms,
    )  # fmt: skip
    return output, codes


def _backward_planes(
    gradient: Tensor, x: Tensor, gain: Tensor, codes: Tensor, resampling: Resampling
) -> tuple[Tensor, Tensor, Tensor]:
    from shadow_defense.generators.stylegan3.polyphase import run_planes

    n, c = x.shape[:2]
    to_x, sums = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty(n * c, 2)
    _run(
        run_planes, resampling.layer, True, gradient, gain, gain, codes, True, to_x, x, sums,
        resampling.down_terms, resampling.up_terms,
    )  # fmt: skip
    to_bias, to_gain = sums.view(n, c, 2).unbind(2)
    # y = gain x + bias: the sums are those of dL/dy and of x dL/dy.
    return to_x, to_gain, to_bias.sum(0)


def _run(
    run_planes: Callable[..., None], layer: Geometry, backward: bool, planes: Tensor, gain: Tensor, bias: Tensor,
    codes: Tensor, keep: bool, output: Tensor, original: Tensor, sums: Tensor, first: Tensor, second: Tensor,
) -> None:  # fmt: skip
    def planar(tensor: Tensor) -> np.ndarray:
        return tensor.detach().contiguous().flatten(0, 1).numpy()

    run_planes(
        layer, backward, planar(planes), planar(gain), planar(bias), codes.numpy(), keep, planar(output),
        planar(original), sums.numpy(), backward, *first.numpy(), *second.numpy(),
        np.float32(NEGATIVE_SLOPE), np.float32(POSITIVE_SLOPE), np.float32(CLAMP),
    )  # fmt: skip


def _forward_matrices(
    x: Tensor, gain: Tensor, bias: Tensor, resampling: Resampling, keep: bool
) -> tuple[Tensor, Tensor]:
    raising, lowering = resampling.matrices(x)
    scaled = torch.addcmul(bias[:, None, None], x, gain[:, :, None, None]).flatten(0, 1)
    outputs, codes = [], []
    for planes in scaled.split(max(1, CHUNK // resampling.samples**2)):
        inner = _sandwich(raising, planes)
        positive = inner >= 0
        inner = torch.where(positive, inner * POSITIVE_SLOPE, inner * NEGATIVE_SLOPE)
        if keep:
            codes.append(torch.where(inner.abs() > CLAMP, CLAMPED, positive.byte()))
        outputs.append(_sandwich(lowering, inner.clamp(-CLAMP, CLAMP)))
    kept = torch.cat(codes) if keep else x.new_empty(0, dtype=torch.uint8)
    return torch.cat(outputs).unflatten(0, x.shape[:2]), kept


def _backward_matrices(
    gradient: Tensor, x: Tensor, gain: Tensor, codes: UInt8[Tensor, "planes inner inner"], resampling: Resampling
) -> tuple[Tensor, Tensor, Tensor]:
    raising, lowering = (matrices.transpose(-1, -2) for matrices in resampling.matrices(x))
    size = max(1, CHUNK // resampling.samples**2)
    planes = zip(gradient.flatten(0, 1).split(size), codes.split(size), strict=True)
    to_scaled = torch.cat(
        [_sandwich(raising, _sandwich(lowering, part) * _slopes(met, gradient.dtype)) for part, met in planes]
    )
    to_scaled = to_scaled.unflatten(0, x.shape[:2])
    return to_scaled * gain[:, :, None, None], (to_scaled * x).sum((2, 3)), to_scaled.sum((0, 2, 3))


def _slopes(met: UInt8[Tensor, "planes inner inner"], dtype: torch.dtype) -> Float[Tensor, "planes inner inner"]:
    # From Python's numbers: a table of slopes would have to be sent to the device in every step.
    below_clamp = (met == 1).to(dtype).mul(POSITIVE_SLOPE - NEGATIVE_SLOPE).add(NEGATIVE_SLOPE)
    return below_clamp.masked_fill(met == CLAMPED, 0.0)


def _sandwich(matrices: Tensor, planes: Tensor) -> Tensor:
    rows, columns = matrices
    terms = (row @ planes @ column.T for row, column in zip(rows, columns, strict=True))
    total: Tensor = sum(terms, start=planes.new_zeros(()))
    return total
