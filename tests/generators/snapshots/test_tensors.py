"""Geometry of tensors against torch's own, and everything that reaches outside."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.legacy_storage import LegacyStorage
from shadow_defense.generators.snapshots.tensors import rebuild_parameter, rebuild_tensor
from shadow_defense.unpickling import Allowance

VALUES = np.arange(24, dtype="<f4")
STORAGE = LegacyStorage("FloatStorage", VALUES)

sides = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 13)), max_size=4)


@given(st.integers(0, 30), sides)
def test_tensors_within_their_storage_are_those_of_torch_and_others_refused(
    offset: int, axes: list[tuple[int, int]]
) -> None:
    size, stride = tuple(side for side, _ in axes), tuple(step for _, step in axes)
    indexes = [
        offset + sum(place * step for place, step in zip(places, stride, strict=True))
        for places in itertools.product(*map(range, size))
    ]
    arguments = (STORAGE, offset, size, stride, False, {})
    if max(indexes) >= len(VALUES) or len(indexes) > len(VALUES):
        with pytest.raises(SnapshotError, match="reaches outside its storage of 24"):
            rebuild_tensor(arguments)
        return
    made = rebuild_tensor(arguments).clone(Allowance(0, 4 * len(indexes)))
    assert torch.equal(made, torch.as_strided(torch.arange(24.0), size, stride, offset))
    assert made.is_contiguous()
    assert made.flatten().tolist() == [float(index) for index in indexes]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (24, (), ()),
        (-1, (2,), (1,)),
        (5, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (25,), (0,)),
        (0, (10**6, 10**6), (0, 0)),
        (0, (2,), (2**70,)),
        (2**70, (1,), (1,)),
        (0, (0,), (1,)),
        (0, (0, 2**70), (1, 1)),
        (0, (2, 3), (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, [2], [1]),
        (0.0, (2,), (1,)),
        (True, (2,), (1,)),
        (0, (2.0,), (1,)),
        (0, ("2",), (1,)),
        (None, None, None),
    ],
)
def test_other_geometry_is_refused(offset: object, size: object, stride: object) -> None:
    with pytest.raises(SnapshotError):
        rebuild_tensor((STORAGE, offset, size, stride, False, {}))


def test_the_stride_of_a_single_element_does_not_matter() -> None:
    assert rebuild_tensor((STORAGE, 3, (1,), (2**70,), False, {})).clone(Allowance(0, 4)).tolist() == [3.0]


def test_a_copy_beyond_the_allowance_is_refused() -> None:
    record = rebuild_tensor((STORAGE, 0, (4,), (1,), False, {}))
    with pytest.raises(SnapshotError, match="more memory than the file holds"):
        record.clone(Allowance(0, 15))


@pytest.mark.parametrize("arguments", [(), (None, False, {}), (STORAGE, False, {}), ([],)])
def test_only_tensors_are_parameters(arguments: tuple[object, ...]) -> None:
    with pytest.raises(SnapshotError):
        rebuild_parameter(arguments)
    with pytest.raises(SnapshotError):
        rebuild_tensor((*arguments, 0, (1,), (1,)))


def test_elements_change_to_the_machines_own_types() -> None:
    bools = LegacyStorage("BoolStorage", np.array([0, 1, 2], "u1"))
    assert rebuild_tensor((bools, 0, (3,), (1,), False, {})).clone(Allowance(0, 3)).tolist() == [False, True, True]
    halves = LegacyStorage("HalfStorage", np.array([0.5, 2.0], "<f2"))
    assert rebuild_tensor((halves, 0, (2,), (1,), False, {}, None)).clone(Allowance(0, 4)).dtype == torch.float16
