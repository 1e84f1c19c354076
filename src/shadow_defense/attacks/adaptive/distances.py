"""Matching terms that a known defense calls for, in place of the attack's own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.adaptive.matching import Tensors


def absolute_distance(simulated: Tensors, observed: Tensors) -> Float[Tensor, ""]:
    """``sum |u - u*| / sum |u*|`` over all entries: the likelihood of Laplace noise (docs/defenses.md).

    >>> absolute_distance([torch.tensor([1.0, 2.0])], [torch.tensor([2.0, -2.0])])
    tensor(1.2500)
    """
    distance = torch.stack([(a - b).abs().sum() for a, b in zip(simulated, observed, strict=True)]).sum()
    scale = torch.stack([b.abs().sum() for b in observed]).sum()
    return distance / scale.clamp_min(1e-30)


def orthogonality_distance(simulated: Tensors, observed: Tensors) -> Float[Tensor, ""]:
    """``mean over tensors of cos(u_l, u*_l)^2 + (||u_l|| / ||u*_l|| - 1)^2`` (docs/defenses.md).

    0 at the truth: what Censor sends is orthogonal to the gradient and as long. The mean in place of the sum, so that
    weights of priors carry over models; observed tensors of zeros, which say nothing, are left out.
    """
    terms = []
    for ours, theirs in zip(simulated, observed, strict=True):
        length = torch.linalg.vector_norm(theirs)
        norm = torch.linalg.vector_norm(ours)
        told = length > 0
        safe = torch.where(told, length, torch.ones_like(length))
        # Made relative one by one: products of late updates would underflow.
        cosine = (ours / norm.clamp_min(1e-30) * (theirs / safe)).sum()
        terms.append(torch.where(told, cosine.square() + (norm / safe - 1).square(), torch.zeros_like(norm)))
    count = sum(bool((tensor != 0).any()) for tensor in observed)
    return torch.stack(terms).sum() / max(count, 1)
