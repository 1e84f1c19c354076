"""State dicts as Flower's records and back, with every tensor in its own type."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from shadow_defense.errors import UpdateError

ARRAYS = "arrays"
"""The key of the model's tensors in a message, which is the default of Flower's strategies."""


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as an ArrayRecord; bfloat16, which it does not know, as float32, which loses nothing."""
    plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
    return ArrayRecord({name: each.float() if each.dtype == torch.bfloat16 else each for name, each in plain.items()})


def read_record(
    record: ArrayRecord, like: Mapping[str, Tensor], whose: str, absent: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a record, as they came, with the names and in the order of ``like``.

    Args:
        whose: of whom the record is, for errors.
        absent: names of ``like`` that the record must not hold, since they stay with the clients.

    Raises:
        UpdateError: naming the tensor that is missing, unexpected, or of another shape.
    """
    given = record.to_torch_state_dict()
    for name in given:
        if name not in like or name in absent:
            raise UpdateError(f"{whose} has an unexpected tensor '{name}': use the same configuration on both sides")
    for name, tensor in like.items():
        if name in absent:
            continue
        if name not in given:
            raise UpdateError(f"{whose} lacks tensor '{name}': use the same configuration on both sides")
        if given[name].shape != tensor.shape:
            raise UpdateError(
                f"tensor '{name}' of {whose} has shape {tuple(given[name].shape)}: expected {tuple(tensor.shape)}"
            )
    return {name: given[name] for name in like if name not in absent}
