"""Losses of an update whose derivative is a mixture of the update and of constants: numbers in place of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


class LossSlope(NamedTuple):
    """``dL / dg_k = scale_k (c_k + own_k g_k)`` for each tensor k of an update g, and its length over all of them."""

    scale: Float[Tensor, " k"]
    own: Float[Tensor, " k"]
    length: Float[Tensor, ""]


@runtime_checkable
class UpdateLoss(Protocol):
    """A loss L of an update g, with constants c; what moves parameters along its derivative reads g and c alone.

    Of a large network the derivative itself, as a tensor for each of g, takes as long as some layers.
    """

    constants: Sequence[Tensor]

    def __call__(self, update: Sequence[Tensor]) -> tuple[Float[Tensor, ""], LossSlope]:
        """L, off the graph, and its derivative."""
        ...


class DistanceFromDirection:
    """``1 - <g, c> / ||g||_2`` over the concatenation of all tensors, c a direction of length 1.

    ``dL/dg = -1 / ||g|| (c - <g, c> / ||g||^2 g)``, of length ``sqrt(1 - cos^2) / ||g||``.
    """

    def __init__(self, direction: Sequence[Tensor]) -> None:
        self.constants = direction

    def __call__(self, update: Sequence[Tensor]) -> tuple[Float[Tensor, ""], LossSlope]:
        product = dot_product(update, self.constants)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(update))))
        inverse = torch.where(norm > 0, 1 / norm, 0)
        cosine = product * inverse
        # Of a cosine of 1 rounding leaves no digit of the length, on which only the size of a step depends.
        length = ((1 - cosine).clamp_min(1e-7) * (1 + cosine).clamp_min(1e-7)).sqrt() * inverse
        count = len(update)
        return 1 - cosine, LossSlope((-inverse).expand(count), (-cosine * inverse).expand(count), length)


def dot_product(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, ""]:
    """``<a, b>`` over the concatenation of all tensors."""
    return torch.stack([torch.dot(*_lines(one, other)) for one, other in zip(a, b, strict=True)]).sum()


def _lines(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
    """Two tensors as vectors, without a copy where both have their channels last, as ``b`` says."""
    if b.dim() == 4 and not b.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return a.flatten(), b.flatten()
