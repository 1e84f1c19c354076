"""The transforms that adaptations are made of: bounds, weights and shifts of both updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shadow_defense.attacks.adaptive.matching import Tensors, Transform, products
from shadow_defense.defenses.clipping import NORM_SLACK


def weighted(weights: Sequence[float]) -> Transform:
    """Both updates, each tensor times its weight: with ``1 / sigma`` noise is alike in all of them."""

    def transform(simulated: Tensors, observed: Tensors) -> tuple[Tensors, Tensors]:
        return products(simulated, weights), products(observed, weights)

    return transform


def shifted(shifts: Sequence[Tensor]) -> Transform:
    """Both updates plus the same tensors."""

    def transform(simulated: Tensors, observed: Tensors) -> tuple[Tensors, Tensors]:
        moved = [[a + b for a, b in zip(each, shifts, strict=True)] for each in (simulated, observed)]
        return moved[0], moved[1]

    return transform


def bounded(bounds: Sequence[float], scope: Literal["global", "tensor"], slack: float = NORM_SLACK) -> Transform:
    """The simulated update times ``min(1, S / (||u|| + slack))``, as a client clips (docs/defenses.md).

    Differentiable: a candidate beyond the bound is moved along it. The observed update is left alone.

    Args:
        bounds: S, one for each tensor; of scope global the first counts.
        slack: in the units of the update.
    """

    def transform(simulated: Tensors, observed: Tensors) -> tuple[Tensors, Tensors]:
        norms = [torch.linalg.vector_norm(tensor) for tensor in simulated]
        if scope == "global":
            factor = _factor(torch.linalg.vector_norm(torch.stack(norms)), bounds[0], slack)
            return [factor * tensor for tensor in simulated], observed
        scaled = zip(simulated, norms, bounds, strict=True)
        return [_factor(norm, bound, slack) * tensor for tensor, norm, bound in scaled], observed

    return transform


def _factor(norm: Tensor, bound: float, slack: float) -> Tensor:
    # An update of nothing has no direction to be scaled in, and no slack to save it where none was asked for.
    return (bound / (norm + slack).clamp_min(1e-30)).clamp(max=1)
