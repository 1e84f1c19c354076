"""Named draws: apart by every name, and, of a site's secret, by every bit."""

from __future__ import annotations

import statistics

import torch

from shadow_defense.seeds import SECRET, named_generator, seed_for


def drawn(seed: int, *names: str | int) -> torch.Tensor:
    return torch.randn(1000, generator=named_generator(seed, *names))


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


def test_draws_of_a_secret_are_normal() -> None:
    values = torch.randn(100_000, generator=named_generator(SECRET + 5, "x"), dtype=torch.float64).tolist()
    assert abs(statistics.mean(values)) < 0.02 and abs(statistics.pstdev(values) - 1) < 0.02
