"""How far a simulated update is from the observed one: the matching terms, each differentiable in the simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.models.update_losses import dot_product

Matching = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def cosine_distance(simulated: Sequence[Tensor], observed: Sequence[Tensor]) -> Float[Tensor, ""]:
    """``1 - <u, u*> / (||u|| ||u*||)`` over the concatenation of all tensors (Geiping et al. 2020)."""
    product, norm = _ProductAndNorm.apply(len(simulated), *simulated, *observed)
    # Not the root of a product of squares: late updates are so small that it would underflow.
    return 1 - product / (norm * _norm(observed)).clamp_min(1e-30)


def distance_from_direction(simulated: Sequence[Tensor], direction: Sequence[Tensor]) -> Float[Tensor, ""]:
    """:func:`cosine_distance` from a ``direction`` of length 1, whose own length is not taken again."""
    product, norm = _ProductAndNorm.apply(len(simulated), *simulated, *direction)
    return 1 - product / norm.clamp_min(1e-30)


def direction_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors over the length of them all; zeros stay zeros."""
    length = _norm(tensors).clamp_min(1e-30)
    return [tensor / length for tensor in tensors]


class _ProductAndNorm(torch.autograd.Function):
    """``<a, b>`` and ``||a||_2``, with ``p' b + (n' / ||a||_2) a`` as the gradient by a in two passes over the tensors.

    Autograd's own takes five; of models with many weights that is a third of an attack's iteration. Tensors: first all
    of a, then all of b, which is constant.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        a, b = tensors[:count], tensors[count:]
        return dot_product(a, b), _norm(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.count = inputs[0]
        ctx.save_for_backward(*inputs[1:], output[1])

    @staticmethod
    def backward(ctx: Any, by_product: Tensor, by_norm: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, norm = ctx.saved_tensors
        # Of zeros the norm's gradient is zero, as torch has it: a is.
        factor = by_norm / torch.where(norm > 0, norm, 1)
        pairs = zip(tensors[: ctx.count], tensors[ctx.count :], strict=True)
        return None, *(torch.addcmul(b * by_product, a, factor) for a, b in pairs), *(None for _ in range(ctx.count))


def _norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


def layer_distance(simulated: Sequence[Tensor], observed: Sequence[Tensor]) -> Float[Tensor, ""]:
    """``sum over tensors of ||u - u*||_2``, relative to ``||u*||_2`` of them all, so that weights carry over models.

    The medical attack (Hatamizadeh et al. 2023) uses the sum alone; its size depends on learning rate and model.
    """
    distance = torch.stack([torch.linalg.vector_norm(a - b) for a, b in zip(simulated, observed, strict=True)]).sum()
    scale = torch.stack([torch.linalg.vector_norm(b) for b in observed]).sum()
    return distance / scale.clamp_min(1e-30)


def squared_distance(simulated: Sequence[Tensor], observed: Sequence[Tensor]) -> Float[Tensor, ""]:
    """``sum over tensors of ||u - u*||_2^2``, relative to ``||u*||_2^2`` of them all.

    Deep Leakage from Gradients (Zhu et al. 2019) uses the sum alone: a constant factor, which tolerances depend on.
    """
    # Each entry is made relative before it is squared: squares of late updates would underflow.
    scale = _norm(observed).clamp_min(1e-30)
    return torch.stack([((a - b) / scale).square().sum() for a, b in zip(simulated, observed, strict=True)]).sum()


MATCHINGS: dict[str, Matching] = {"cosine": cosine_distance, "layers": layer_distance, "squares": squared_distance}


def matching(name: str) -> Matching:
    """A matching term by name; an unknown one raises :class:`ConfigError` listing the valid ones."""
    if name not in MATCHINGS:
        raise ConfigError(unknown_name("matching term", name, MATCHINGS))
    return MATCHINGS[name]
