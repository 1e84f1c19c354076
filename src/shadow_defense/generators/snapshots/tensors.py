"""Tensors as a snapshot describes them: a storage, an offset, sizes and strides, checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.legacy_storage import LegacyStorage
from shadow_defense.unpickling import Allowance

MOST_DIMENSIONS = 8
"""Networks have four at most."""


@dataclass(frozen=True, eq=False, slots=True)
class TensorRecord:
    """A tensor that lies within its storage; offset and strides count elements."""

    storage: LegacyStorage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def clone(self, allowance: Allowance) -> Shaped[Tensor, "..."]:
        """The tensor, contiguous and in memory of its own."""
        values = self.storage.values
        allowance.copy(math.prod(self.size) * values.itemsize)
        strides = tuple(step * values.itemsize for step in self.stride)
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.size, strides, writeable=False)
        native = view.astype(values.dtype.newbyteorder("="), order="C", copy=True)
        tensor = torch.from_numpy(native)
        return tensor != 0 if self.storage.kind == "BoolStorage" else tensor


def _counts(value: object) -> tuple[int, ...] | None:
    """The value as whole numbers of at least 0, or None when it is anything else."""
    if type(value) is not tuple or len(value) > MOST_DIMENSIONS:
        return None
    return value if all(type(item) is int and item >= 0 for item in value) else None


def rebuild_tensor(arguments: tuple[object, ...]) -> TensorRecord:
    """Stand-in of ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``.

    The last element ``offset + sum_i (size_i - 1) stride_i`` must lie in the storage, and the tensor may not have more
    elements than it: a stride of 0 would make any size of them.

    Raises:
        SnapshotError: when it is empty or reaches outside its storage, or the arguments have other types.
    """
    if len(arguments) not in (6, 7) or type(arguments[0]) is not LegacyStorage:
        raise SnapshotError("a tensor is built from something that is no storage")
    storage, (start, size, stride) = arguments[0], map(_counts, ((arguments[1],), arguments[2], arguments[3]))
    if start is None or size is None or stride is None or len(size) != len(stride):
        raise SnapshotError("a tensor's offset, sizes or strides are no whole numbers of at least 0")
    offset, held = start[0], len(storage.values)
    elements = math.prod(size)
    if elements == 0:
        raise SnapshotError("a tensor has no elements")
    # The stride of a side of 1 is never walked, and may be a number that no machine can hold.
    walked = tuple(step if side > 1 else 0 for side, step in zip(size, stride, strict=True))
    last = offset + sum((side - 1) * step for side, step in zip(size, walked, strict=True))
    if last >= held or elements > held:
        raise SnapshotError(f"a tensor reaches outside its storage of {held} elements")
    return TensorRecord(storage, offset, size, walked)


def rebuild_parameter(arguments: tuple[object, ...]) -> TensorRecord:
    """Stand-in of ``torch._utils._rebuild_parameter(tensor, requires_grad, hooks)``: the tensor.

    Raises:
        SnapshotError: when its first argument is no tensor.
    """
    if len(arguments) != 3 or type(arguments[0]) is not TensorRecord:
        raise SnapshotError("a parameter is built from something that is no tensor")
    return arguments[0]
