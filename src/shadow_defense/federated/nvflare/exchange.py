"""Named parameters as NVFlare exchanges them (NumPy arrays or PyTorch tensors) as tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shadow_defense.errors import UpdateError

SAMPLES = "num_samples"
"""The key in a result's meta data under which a client says how many images its update comes from."""


def to_tensors(params: Mapping[str, Any], whose: str) -> dict[str, Tensor]:
    """The parameters as tensors of their own, in the types they came in.

    Raises:
        UpdateError: for anything but arrays and tensors of numbers, such as what homomorphic encryption leaves.

    >>> to_tensors({"count": np.int64(3)}, "the update")
    {'count': tensor(3)}
    """
    found = {}
    for name, value in params.items():
        if isinstance(value, Tensor):
            found[name] = value.detach().cpu().clone()
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
            found[name] = torch.from_numpy(np.array(value))
        else:
            raise UpdateError(
                f"'{name}' in {whose} is of type {type(value).__name__}: expected NumPy arrays or PyTorch tensors"
            )
    return found


def from_tensors(tensors: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors as ``like`` has each of them: a NumPy array or a PyTorch tensor."""
    return {name: tensor if isinstance(like[name], Tensor) else tensor.numpy() for name, tensor in tensors.items()}
