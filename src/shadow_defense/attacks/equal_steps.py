"""Whether an update is nothing but signs: the first step of an optimiser that divides by the gradient's size."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LIKE_SIGNS = 0.5
"""Share of equal magnitudes from which an update is taken for signs; of gradients it is a few hundredths."""

NEARLY = 0.01
"""Relative distance up to which two magnitudes are equal: epsilon, weight decay and rounding move them less."""


def equal_share(update: Iterable[Tensor]) -> float:
    """The share of an update's values, zeros left out, that are as large as their median up to ``NEARLY``.

    One step of Adam adds ``-eta g / (|g| + epsilon)``, one of RMSprop the same with a larger eta: of gradients far
    above epsilon nothing but their signs, each as large as the others. 0 for an update of zeros.

    >>> equal_share([torch.tensor([0.1, -0.1, 0.1]), torch.tensor([0.0, 0.03])])
    0.75
    """
    sizes = torch.cat([tensor.detach().flatten() for tensor in update]).abs()
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 0.0
    return ((sizes / sizes.median() - 1).abs() <= NEARLY).float().mean().item()
