"""Named draws: apart by every name, and, of a site's secret, by every bit."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest
import scipy.stats
import torch

from shadow_defense.seeds import (
    SECRET,
    named_generator,
    seed_for,
    standard_exponential,
    standard_normal,
    uniform,
)


def drawn(seed: int, *names: str | int) -> torch.Tensor:
    return standard_normal((1000,), named_generator(seed, *names))


def test_a_runs_draws_are_what_they_were() -> None:
    """So that earlier runs can be repeated: the first 63 bits of ``printf '0\\037latents' | sha256sum``."""
    assert seed_for(0, "latents") == 6487711161483894718
    expected = torch.randn(3, generator=torch.Generator().manual_seed(seed_for(3, "a", 1)))
    assert torch.equal(torch.randn(3, generator=named_generator(3, "a", 1)), expected)


def test_draws_of_a_secret_are_repeatable_and_apart() -> None:
    secret = 1 << 255 | 12345
    assert torch.equal(drawn(secret, "noise", 1), drawn(secret, "noise", 1))
    others = [drawn(secret, "noise", 2), drawn(secret + 1, "noise", 1), drawn(secret ^ 1 << 200, "noise", 1)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([drawn(secret, "noise", 1), other]))[0, 1])) < 0.2


def test_a_secret_stays_one_and_is_no_seed_that_can_be_tried() -> None:
    """PyTorch keeps the lower 32 bits of a seed: 2^32 tries would take the noise off."""
    derived = seed_for(SECRET, "a")
    assert derived >= 2**255
    state = named_generator(SECRET, "a").get_state().view(torch.int64)
    # MT19937's own seeding: each word follows from the one before, so from the first.
    first = int(state[3])
    following = (1812433253 * (first ^ first >> 30) + 1) % 2**32
    assert int(state[4]) != following
    plain = named_generator(0, "a").get_state().view(torch.int64)
    first = int(plain[3])
    assert int(plain[4]) == (1812433253 * (first ^ first >> 30) + 1) % 2**32


@pytest.mark.parametrize(
    ("draw", "distribution"), [(standard_normal, "norm"), (uniform, "uniform"), (standard_exponential, "expon")]
)
@pytest.mark.parametrize("seed", [5, SECRET + 5])
def test_numbers_have_the_distribution_that_they_name(
    draw: Callable[..., torch.Tensor], distribution: str, seed: int
) -> None:
    values = draw((4, 5001), named_generator(seed, "x"), torch.float64)
    assert values.shape == (4, 5001) and values.dtype == torch.float64
    assert draw((3,), named_generator(seed, "x")).dtype == torch.float32
    assert scipy.stats.kstest(values.flatten().numpy(), distribution).pvalue > 0.01
    assert abs(float(torch.corrcoef(values)[0, 1])) < 0.05


def test_a_secrets_numbers_are_no_values_of_the_linear_generator_below() -> None:
    """Else the noise on a black border gives the whole picture's away: each value is hashed with a key of its own."""
    draws, beside = (named_generator(SECRET + 5, "x") for _ in range(2))
    key = torch.randint(-(2**63), 2**63 - 1, (4,), generator=beside).numpy().tobytes()
    words = struct.unpack("<3I", hashlib.shake_256(key).digest(12))
    drawn = uniform((3,), draws, torch.float64).tolist()
    assert drawn == [(word >> 8) / 2**24 for word in words]
    # And the generator has gone on: a second draw has another key.
    assert uniform((3,), draws, torch.float64).tolist() != drawn


def test_a_secrets_draws_go_on_from_a_saved_state() -> None:
    draws = named_generator(SECRET + 5, "x")
    standard_normal((7,), draws)
    saved = draws.get_state()
    following = standard_normal((7,), draws)
    again = type(draws)()
    again.set_state(saved)
    assert torch.equal(standard_normal((7,), again), following)


def test_plain_draws_are_those_of_pytorch() -> None:
    for ours, theirs in (
        (standard_normal, torch.randn),
        (uniform, torch.rand),
        (standard_exponential, lambda *shape, generator: torch.empty(*shape).exponential_(generator=generator)),
    ):
        expected = theirs(3, 4, generator=named_generator(1, "a"))
        assert torch.equal(ours((3, 4), named_generator(1, "a")), expected)
