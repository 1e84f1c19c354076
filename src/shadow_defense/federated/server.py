"""FedAvg (McMahan et al. 2017): the average of the clients' updates, weighted by their numbers of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shadow_defense.errors import UpdateError
from shadow_defense.federated.update import ModelUpdate


def average_updates(updates: Sequence[ModelUpdate]) -> dict[str, Tensor]:
    """``sum_i n_i U_i / sum_i n_i`` of what is sent, buffers too; in double precision, back in each tensor's own type.

    Integer tensors (batch-norm counters) take the weighted mean rounded to the nearest integer, so that they stay
    integers after averaging.
    """
    if not updates:
        raise UpdateError("no client sent an update in this round: nothing to average")
    for update in updates[1:]:
        update.check_against(updates[0].tensors)
    total = sum(update.samples for update in updates)
    averaged = {}
    for name, first in updates[0].tensors.items():
        mean = torch.zeros(first.shape, dtype=torch.float64)
        for update in updates:
            mean += update.tensors[name].double() * (update.samples / total)
        averaged[name] = (mean if first.is_floating_point() else mean.round()).to(first.dtype)
    return averaged


def apply_update(state: Mapping[str, Tensor], difference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The global state after the round: ``state + difference``; what no client sent stays as it was."""
    return {name: tensor + difference[name] if name in difference else tensor for name, tensor in state.items()}
