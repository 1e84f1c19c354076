"""How far a simulated update is from the observed one: the matching terms, each differentiable in the simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.errors import ConfigError, unknown_name

Matching = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def cosine_distance(simulated: Sequence[Tensor], observed: Sequence[Tensor]) -> Float[Tensor, ""]:
    """``1 - <u, u*> / (||u|| ||u*||)`` over the concatenation of all tensors (Geiping et al. 2020)."""
    product = torch.stack([(a * b).sum() for a, b in zip(simulated, observed, strict=True)]).sum()
    # Not the root of a product of squares: late updates are so small that it would underflow.
    norms = _norm(simulated) * _norm(observed)
    return 1 - product / norms.clamp_min(1e-30)


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
