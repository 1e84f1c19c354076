"""torch's own Adam without torch's compiler, which its optimisers import: longer than a small round takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw


class Adam:
    """Adam (Kingma and Ba 2015) or, with ``weight_decay``, AdamW (Loshchilov and Hutter 2019), with torch's defaults.

    Args:
        parameters: leaves, moved in place.
        fused: all tensors of a step in one call.
    """

    def __init__(self, parameters: Iterable[Tensor], *, weight_decay: float = 0.0, fused: bool | None = None) -> None:
        self._parameters, self._weight_decay, self._fused = list(parameters), weight_decay, fused
        self._means, self._squares = ([torch.zeros_like(each.detach()) for each in self._parameters] for _ in range(2))
        self._steps = [
            torch.zeros((), dtype=torch.float32, device=each.device if fused else None) for each in self._parameters
        ]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], learning_rate: float) -> None:
        """One step along ``gradients``, one for each parameter; without one it stays."""
        reached = {place: gradient for place, gradient in enumerate(gradients) if gradient is not None}
        rule = adamw if self._weight_decay else adam
        rule(
            [self._parameters[place] for place in reached],
            list(reached.values()),
            [self._means[place] for place in reached],
            [self._squares[place] for place in reached],
            [],
            [self._steps[place] for place in reached],
            fused=self._fused,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )
