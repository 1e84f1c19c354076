"""Pairwise masks: they cancel in the sum, and alone they hide everything."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_defense.errors import UpdateError
from shadow_defense.federated.secure_sum import (
    FRACTION_BITS,
    add_masks,
    from_fixed_point,
    pair_mask,
    pair_secrets,
    sum_masked,
    to_fixed_point,
)

CLIENTS = ["a", "b", "c", "d", "e"]


def test_fixed_point_by_hand() -> None:
    values = torch.tensor([0.0, 1.0, -1.0, 0.5, -(2.0**-24)], dtype=torch.float64)
    words = to_fixed_point(values, 2)
    assert words.tolist() == [0, 2**24, 2**32 - 2**24, 2**23, 2**32 - 1]
    assert torch.equal(from_fixed_point(words), values)


def test_three_clients_by_hand() -> None:
    """a adds what it shares with b and c; b takes a's away and adds c's; c takes both away."""
    clients = ["a", "b", "c"]
    secrets = pair_secrets(clients, 0)
    ab, ac, bc = (
        np.frombuffer(hashlib.shake_128(secrets[frozenset(pair)] + (3).to_bytes(8, "little")).digest(8), "<u4")
        for pair in (("a", "b"), ("a", "c"), ("b", "c"))
    )
    words = np.array([5, 2**32 - 1], dtype=np.uint32)
    sent = [add_masks(words, client, clients, secrets, 3) for client in clients]
    big = [array.astype(object) for array in (words, ab, ac, bc)]
    expected = [big[0] + big[1] + big[2], big[0] - big[1] + big[3], big[0] - big[2] - big[3]]
    for own, wanted in zip(sent, expected, strict=True):
        assert own.tolist() == [value % 2**32 for value in wanted]
    assert sum_masked(sent).tolist() == [15, 2**32 - 3]


@settings(max_examples=30)
@given(count=st.integers(1, 6), seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1e-2, 1.0]))
def test_the_sum_is_the_plain_one_to_fixed_point_precision(count: int, seed: int, scale: float) -> None:
    clients = [f"client-{index}" for index in range(count)]
    draws = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(count, 41, generator=draws, dtype=torch.float64)
    secrets = pair_secrets(clients, seed)
    words = [to_fixed_point(own, count) for own in values]
    found = sum_masked([add_masks(own, name, clients, secrets, 4) for own, name in zip(words, clients, strict=True)])
    # Every client rounds to half a step.
    assert float((from_fixed_point(found) - values.sum(0)).abs().max()) <= count * 2.0 ** -(FRACTION_BITS + 1)


def test_a_single_masked_vector_is_uniform_and_says_nothing_of_the_values() -> None:
    """Chi-square of the bytes of 40,000 words, whatever was masked; and no correlation with it."""
    secrets = pair_secrets(CLIENTS, 1)
    count = 40_000
    ramp = torch.linspace(-20, 20, count, dtype=torch.float64)
    for values in (torch.zeros(count, dtype=torch.float64), ramp):
        for client in (CLIENTS[0], CLIENTS[2]):
            sent = add_masks(to_fixed_point(values, len(CLIENTS)), client, CLIENTS, secrets, 0)
            counts = np.bincount(sent.view(np.uint8), minlength=256)
            expected = 4 * count / 256
            # 255 degrees of freedom: mean 255, standard deviation 22.6; five of them are one in three million.
            assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * 22.6
            if values is ramp:
                correlation = np.corrcoef(sent.astype(np.float64), ramp.numpy())[0, 1]
                assert abs(correlation) < 5 / count**0.5
    # The masks alone make it so: without them the ramp is far from uniform in its bytes.
    counts = np.bincount(to_fixed_point(ramp, len(CLIENTS)).view(np.uint8), minlength=256)
    assert ((counts - 4 * count / 256) ** 2 / (4 * count / 256)).sum() > 10 * 255


def test_every_pair_and_every_round_has_a_mask_of_its_own() -> None:
    secrets = pair_secrets(CLIENTS, 0)
    assert len(secrets) == 10
    assert len(set(secrets.values())) == 10
    assert {len(secret) for secret in secrets.values()} == {32}
    assert secrets == pair_secrets(list(reversed(CLIENTS)), 0)
    assert secrets != pair_secrets(CLIENTS, 1)
    one = secrets[frozenset("ab")]
    assert not np.array_equal(pair_mask(one, 0, 8), pair_mask(one, 1, 8))


def test_a_missing_client_leaves_noise() -> None:
    """What is left out of the protocol: without every client the sum is masked still."""
    secrets = pair_secrets(CLIENTS, 0)
    words = to_fixed_point(torch.zeros(100, dtype=torch.float64), len(CLIENTS))
    sent = [add_masks(words, client, CLIENTS, secrets, 0) for client in CLIENTS[:-1]]
    assert from_fixed_point(sum_masked(sent)).abs().mean() > 10


@pytest.mark.parametrize("value", [2.0**7 / 5, -100.0, float("nan"), float("inf")])
def test_what_might_not_fit_is_refused(value: float) -> None:
    with pytest.raises(UpdateError, match=r"too large for the secure sum of 5 clients: expected less than 25\.6"):
        to_fixed_point(torch.tensor([0.0, value], dtype=torch.float64), 5)
