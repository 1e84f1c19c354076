"""State dicts of two places compared: their types, their difference, whether they are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def in_types_of(given: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``given`` in the types of ``like``; averaging makes floating-point numbers of integers, which are rounded.

    >>> in_types_of({"count": torch.tensor(2.9999999, dtype=torch.float64)}, {"count": torch.tensor(0)})
    {'count': tensor(3)}
    """
    return {name: _in_type(tensor, like[name].dtype) for name, tensor in given.items()}


def on_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model's state in the host's memory, detached; on the CPU they stay the model's own."""
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``after - before`` in double precision, then in the types of ``before``; integers rounded to the nearest."""
    return {
        name: _in_type(after[name].double() - tensor.double(), tensor.dtype).reshape(tensor.shape)
        for name, tensor in before.items()
    }


def digest(state: Mapping[str, Tensor], *words: str) -> str:
    """SHA-256 over names, types, shapes and bits, and over ``words``: equal for equal states only."""
    found = hashlib.sha256("".join(f"{len(word)}:{word}" for word in words).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point() and not dtype.is_floating_point:
        tensor = tensor.round()
    return tensor.to(dtype)
