"""State dicts as Flower's records and back, with every tensor in its own type."""

from __future__ import annotations

import hashlib
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


def in_types_of(given: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``given`` in the types of ``like``; averaging makes floating-point numbers of integers, which are rounded.

    >>> in_types_of({"count": torch.tensor(2.9999999, dtype=torch.float64)}, {"count": torch.tensor(0)})
    {'count': tensor(3)}
    """
    return {name: _in_type(tensor, like[name].dtype) for name, tensor in given.items()}


def change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``after - before`` in double precision, then in the types of ``before``; integers rounded to the nearest."""
    return {
        name: _in_type(after[name].double() - tensor.double(), tensor.dtype).reshape(tensor.shape)
        for name, tensor in before.items()
    }


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bits: equal for equal states only."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point() and not dtype.is_floating_point:
        tensor = tensor.round()
    return tensor.to(dtype)
