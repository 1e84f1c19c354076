"""The grid: what is rounded, what fits, and that Flower's own quantisation then adds nothing."""

from __future__ import annotations

import functools
import hashlib
import operator
from importlib import import_module

import numpy as np
import pytest
import torch
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_defense.errors import RunError, UpdateError
from shadow_defense.federated.flower.secure_aggregation import masks as masks_module
from shadow_defense.federated.flower.secure_aggregation.fixed_point import (
    COUNTS,
    LEVELS,
    LIMIT,
    FixedPoint,
    power_of_two_from,
)
from shadow_defense.federated.flower.secure_aggregation.masks import MODULUS, masks, use_own_masks
from shadow_defense.federated.server import average_updates
from shadow_defense.federated.update import ModelUpdate


def update(samples: int, values: list[float], count: int, client: str = "site", steps: int = 1) -> ModelUpdate:
    tensors = {"weight": torch.tensor(values, dtype=torch.float64), "count": torch.tensor(count)}
    return ModelUpdate(tensors, samples, steps, 0, client)


clients = st.lists(
    st.tuples(
        st.integers(1, 300), st.lists(st.floats(-63, 63), min_size=3, max_size=3), st.integers(0, 30), st.integers(0, 9)
    ),
    min_size=2,
    max_size=9,
)


@settings(max_examples=50)
@given(clients)
def test_the_average_of_the_rows_is_fedavgs_to_half_a_step_of_each(
    drawn: list[tuple[int, list[float], int, int]],
) -> None:
    updates = [update(n, values, count, steps=steps) for n, values, count, steps in drawn]
    fixed_point = FixedPoint(len(updates), power_of_two_from(max(each.samples for each in updates)))
    total = np.sum([fixed_point.encode(each) for each in updates], axis=0)
    found = fixed_point.decode(total, updates[0].tensors, 3)
    expected, samples = average_updates(updates), sum(each.samples for each in updates)
    assert (found.samples, found.round, found.client) == (samples, 3, "all-clients")
    bound = fixed_point.largest_error(samples, len(updates)) + 1e-12
    assert float((found.tensors["weight"] - expected["weight"]).abs().max()) <= bound
    # Counters: the same integer, unless the mean is as near to two of them as the sum is exact.
    mean = sum(count * n for n, _, count, _ in drawn) / samples
    assert found.tensors["count"].dtype == torch.int64
    assert abs(int(found.tensors["count"]) - mean) <= 0.5 + COUNTS * bound
    assert COUNTS * bound < 0.01
    assert abs(found.steps - sum(steps * n for n, _, _, steps in drawn) / samples) <= 0.5 + COUNTS * bound


def test_a_row_by_hand() -> None:
    """3 of at most 4 images, 2 steps; the step is 2 * 64 / 2^30 = 2^-23; tensors by name: count, weight."""
    fixed_point = FixedPoint(2, 4)
    assert fixed_point.step == 2.0**-23
    row = fixed_point.encode(update(3, [1.0, -(2.0**-23), 0.1], 4096, steps=2))
    assert row.tolist() == [0.75, 0.75 * 2 / 4096, 0.75, 0.75, -(2.0**-23), round(0.075 * 2**23) / 2**23]


def test_flowers_rounding_has_nothing_to_draw() -> None:
    fixed_point = FixedPoint(5, 8)
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    row = fixed_point.encode(update(7, values, 3))
    first, second = (quantize([row], fixed_point.limit, LEVELS)[0] for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(first, (row + LIMIT) / fixed_point.step)


def test_the_largest_sum_fits() -> None:
    fixed_point = FixedPoint(2**18 - 1, 1)
    largest = quantize([fixed_point.encode(update(1, [LIMIT], 0))], fixed_point.limit, LEVELS)[0].max()
    assert largest == LEVELS
    assert fixed_point.clients * int(largest) < MODULUS
    with pytest.raises(UpdateError, match="too many for one secure sum: expected fewer than 262144"):
        FixedPoint(2**18, 1)


def test_a_sum_is_read_in_whatever_order_the_tensors_are_listed() -> None:
    """A state that was read from disk lists them by name, a model's in the order of its layers."""
    fixed_point, given = FixedPoint(2, 1), update(1, [1.0, 2.0, 3.0], 7)
    listed = {name: given.tensors[name] for name in reversed(list(given.tensors))}
    found = fixed_point.decode(2 * fixed_point.encode(given), listed, 0).tensors
    assert list(found) == list(listed) and found["weight"].tolist() == [1.0, 2.0, 3.0] and int(found["count"]) == 7


def test_what_does_not_fit_is_refused_and_never_clipped() -> None:
    fixed_point = FixedPoint(3, 4)
    with pytest.raises(UpdateError, match=r"a change of 64.1 in tensor 'weight' of site does not fit .* at most 64"):
        fixed_point.encode(update(1, [0.0, -64.1], 1))
    with pytest.raises(UpdateError, match="tensor 'count'"):
        fixed_point.encode(update(1, [0.0], COUNTS * 65))
    with pytest.raises(UpdateError, match="site has 5 images and the server expects at most 4: raise most_images"):
        fixed_point.encode(update(5, [0.0], 1))
    with pytest.raises(UpdateError, match="at least 2"):
        FixedPoint(1, 4)
    with pytest.raises(UpdateError, match="given as 3: expected a power of two"):
        FixedPoint(3, 3)
    row = fixed_point.encode(update(1, [0.0], 1))
    with pytest.raises(UpdateError, match="not one of updates of this model"):
        fixed_point.decode(row, {"weight": torch.zeros(3)}, 0)


def test_masks_come_from_all_bits_of_a_key() -> None:
    """Flower's own do not: these two keys, whose words are swapped, have the same mask there."""
    key, swapped = bytes(range(32)), bytes([*range(4, 8), *range(4), *range(8, 32)])
    shapes = [(1,), (2, 3)]
    weak, weak_of_swapped = (pseudo_rand_gen(each, 2**32, shapes) for each in (key, swapped))
    assert all(np.array_equal(one, other) for one, other in zip(weak, weak_of_swapped, strict=True))
    own, of_swapped = masks(key, MODULUS, shapes), masks(swapped, MODULUS, shapes)
    assert not any(np.array_equal(one, other) for one, other in zip(own, of_swapped, strict=True))
    stream = hashlib.shake_128(key).digest(56)
    words = [int.from_bytes(stream[place : place + 6], "little") for place in range(0, 56, 8)]
    assert [mask.shape for mask in own] == shapes and {mask.dtype for mask in own} == {np.dtype(np.int64)}
    assert np.concatenate([mask.flatten() for mask in own]).tolist() == words
    with pytest.raises(RunError, match="modulo 1024"):
        masks(key, 1024, shapes)


def test_flower_leaves_28_bits_of_a_key_that_two_clients_share() -> None:
    """Why its masks are replaced: so many are tried in seconds. If this fails, Flower may have mended it (#7522)."""
    (one, _), (_, other) = generate_key_pairs(), generate_key_pairs()
    key = generate_shared_key(one, other)
    folded = functools.reduce(
        operator.xor, (int.from_bytes(key[place : place + 4], "little") for place in range(0, len(key), 4))
    )
    assert all(byte < 128 for byte in folded.to_bytes(4, "little"))
    drawn = np.random.RandomState(folded).randint(0, 2**32 - 1, 5, dtype=np.int64)
    assert np.array_equal(pseudo_rand_gen(key, 2**32, [(5,)])[0], drawn)


def test_a_flower_that_draws_its_masks_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use_own_masks()
    assert all(import_module(name).pseudo_rand_gen is masks for name in masks_module.USERS)
    monkeypatch.setattr(masks_module, "DRAWS", "another_name")
    with pytest.raises(RunError, match="in another place: install flwr"):
        use_own_masks()
