"""State dicts as Flower's records and back, with every tensor in its own type."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from shadow_defense.errors import UpdateError, shown

ARRAYS = "arrays"
"""The key of the model's tensors in a message, which is the default of Flower's strategies."""

METRICS = "metrics"
SAMPLES, STEPS = "num-examples", "steps"
"""What a client says beside its tensors: its number of images, of steps, and which of the clients it is."""

CONTROL, OWN_CONTROL = "control-variate", "own-control-variate"
"""The keys of SCAFFOLD's control variates: the server's (in a reply: what it changes by), and the client's own, which a
mod hands to the training and which never leaves."""

NUMPY = "numpy.ndarray"
"""The only form of an array that is read, by Flower's name for it."""


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as an ArrayRecord; bfloat16, which it does not know, as float32, which loses nothing."""
    plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
    return ArrayRecord({name: each.float() if each.dtype == torch.bfloat16 else each for name, each in plain.items()})


def from_record(
    record: ArrayRecord, like: Mapping[str, Tensor], whose: str, absent: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a record, as they came, with the names and in the order of ``like``.

    Args:
        whose: of whom the record is, for errors.
        absent: names of ``like`` that the record must not hold, since they stay with the clients.

    Raises:
        UpdateError: naming the tensor that is missing, unexpected, of another shape or kind, or cannot be read.
    """
    for name in record:
        if name not in like or name in absent:
            raise UpdateError(
                f"{whose} has an unexpected tensor '{shown(name)}': use the same configuration on both sides"
            )
    for name in like:
        if name not in absent and name not in record:
            raise UpdateError(f"{whose} lacks tensor '{name}': use the same configuration on both sides")
    return {name: _tensor(record[name], tensor, name, whose) for name, tensor in like.items() if name not in absent}


def _tensor(array: Array, like: Tensor, name: str, whose: str) -> Tensor:
    expected = tuple(like.shape)
    if array.stype != NUMPY:
        raise UpdateError(f"tensor '{name}' of {whose} is written as {shown(array.stype)}: expected {NUMPY}")
    try:
        shape, dtype, offset = _header(array.data)
    except Exception as error:
        # NumPy's parser of headers raises what it likes.
        raise UpdateError(f"tensor '{name}' of {whose} cannot be read: {shown(error)}") from error
    if shape != expected:
        raise UpdateError(f"tensor '{name}' of {whose} has shape {shown(shape)}: expected {expected}")
    # Averages make floating-point numbers of integers; the other way round nothing is left.
    if dtype.kind not in ("f" if like.is_floating_point() else "fiub"):
        raise UpdateError(f"tensor '{name}' of {whose} has type {shown(dtype)}: expected {like.dtype}")
    # Before anything is built from a header that may claim any size.
    if len(array.data) - offset != math.prod(shape) * dtype.itemsize:
        raise UpdateError(f"tensor '{name}' of {whose} has {len(array.data) - offset} bytes, which is not its shape")
    try:
        return torch.from_numpy(array.numpy())
    except Exception as error:
        raise UpdateError(f"tensor '{name}' of {whose} cannot be read: {shown(error)}") from error


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and length of the header of what Flower writes by ``numpy.save``."""
    file = BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype, file.tell()
