"""The loop that all attacks share: the best iterate, the box, and losses that are not numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from shadow_defense.attacks.search import Found, Losses, cosine_schedule, search, step_schedule
from shadow_defense.progress import Task

BOX = (torch.full((1, 1, 1, 1), -1.0), torch.full((1, 1, 1, 1), 1.0))


def constant(_: float) -> float:
    return 1.0


def run(losses: Any, start: Tensor | None = None, **changes: Any) -> Found:
    given = {"iterations": 50, "learning_rate": 0.1, "schedule": constant, "bounds": BOX, **changes}
    start = torch.full((1, 1, 2, 2), 0.9) if start is None else start
    return search(losses, start, draws=torch.Generator().manual_seed(0), **given)


def distance_to(target: float) -> Any:
    def losses(x: Tensor) -> Losses:
        total = (x - target).square().sum()
        return Losses(total, total.detach())

    return losses


def test_finds_a_minimum() -> None:
    found = run(distance_to(-0.3), iterations=300, schedule=cosine_schedule)
    torch.testing.assert_close(found.images, torch.full((1, 1, 2, 2), -0.3), rtol=0, atol=1e-3)
    assert found.matching_loss == pytest.approx(0, abs=1e-5)


def test_the_best_iterate_is_kept_with_its_own_matching_loss() -> None:
    """The total is least at the 7th evaluation of 21; the matching part goes on falling and must not be mixed in."""
    seen: list[Tensor] = []

    def losses(x: Tensor) -> Losses:
        seen.append(x.detach().clone())
        total = x.sum() * 0 + abs(len(seen) - 7) + 0.0 * x.square().sum() + 1e-9 * x.sum()
        return Losses(total, torch.tensor(100.0 - len(seen)))

    found = run(losses, iterations=20)
    assert len(seen) == 21
    assert torch.equal(found.images, seen[6])
    assert not torch.equal(seen[6], seen[-1])
    assert found.matching_loss == 93.0


def test_the_last_iterate_counts_too() -> None:
    """One step in the right direction: without a last evaluation the start would be returned."""
    found = run(distance_to(-1.0), iterations=1)
    torch.testing.assert_close(found.images, torch.full((1, 1, 2, 2), 0.8), rtol=0, atol=1e-5)
    assert found.matching_loss == pytest.approx(4 * 1.8**2, rel=1e-4)


def test_every_iterate_stays_in_the_box() -> None:
    seen: list[Tensor] = []

    def losses(x: Tensor) -> Losses:
        seen.append(x.detach().clone())
        return distance_to(5.0)(x)

    low, high = torch.tensor([-0.2, -3.0]).view(1, 2, 1, 1), torch.tensor([0.5, 2.0]).view(1, 2, 1, 1)
    start = torch.full((1, 2, 2, 2), 4.0)
    found = run(losses, start, bounds=(low, high), energy_noise=1.0, learning_rate=0.5)
    for x in [*seen, found.images]:
        assert (x >= low).all() and (x <= high).all()
    assert torch.equal(found.images, high.expand(1, 2, 2, 2))
    assert torch.equal(start, torch.full((1, 2, 2, 2), 4.0))


def test_survives_losses_that_are_not_numbers() -> None:
    """Below 0.5 there is nothing but NaN, in the loss and in its gradient; the best before that is returned."""

    def losses(x: Tensor) -> Losses:
        total = (x - 0.5).sqrt().sum()
        return Losses(total, total.detach())

    found = run(losses, iterations=40)
    assert torch.isfinite(found.images).all()
    assert (found.images >= 0.5).all() and (found.images < 0.75).all()
    assert math.isfinite(found.matching_loss)
    assert any(math.isnan(value) for value in found.history)


@pytest.mark.parametrize("signed", [True, False])
def test_one_loss_that_is_not_a_number_does_not_end_the_search(signed: bool) -> None:
    """In the optimiser's memory a single NaN would stay for ever."""
    calls = []

    def losses(x: Tensor) -> Losses:
        calls.append(None)
        total = (x + 0.3).square().sum() * (float("nan") if len(calls) == 5 else 1.0)
        return Losses(total, total.detach())

    found = run(losses, iterations=300, schedule=cosine_schedule, signed=signed)
    torch.testing.assert_close(found.images, torch.full((1, 1, 2, 2), -0.3), rtol=0, atol=1e-2)


def test_nothing_but_not_a_number_returns_the_start() -> None:
    def losses(x: Tensor) -> Losses:
        total = (x * float("nan")).sum()
        return Losses(total, total.detach())

    found = run(losses)
    assert torch.equal(found.images, torch.full((1, 1, 2, 2), 0.9))
    assert found.matching_loss == math.inf


def test_signed_steps_do_not_depend_on_the_size_of_the_gradient() -> None:
    def tilted(x: Tensor) -> Losses:
        total = (x * torch.tensor([1.0, -1e-3, 1e-6, 1e3]).view(1, 1, 2, 2)).sum()
        return Losses(total, total.detach())

    start = torch.zeros(1, 1, 2, 2)
    found = run(tilted, start, iterations=3, signed=True, learning_rate=0.01)
    expected = torch.tensor([-0.03, 0.03, -0.03, -0.03]).view(1, 1, 2, 2)
    torch.testing.assert_close(found.images, expected, rtol=1e-4, atol=0)


def test_schedules() -> None:
    assert [step_schedule(each) for each in (0.37, 0.375, 0.62, 0.625, 0.874, 0.875)] == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.01, 0.001]
    )
    warm = [cosine_schedule(each, 0.1) for each in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert warm == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)


def test_rate_follows_the_schedule() -> None:
    """With a gradient of constant sign each of Adam's steps is as long as the rate."""
    seen: list[float] = []

    def losses(x: Tensor) -> Losses:
        seen.append(float(x.detach().flatten()[0]))
        total = x.sum()
        return Losses(total, total.detach())

    run(losses, torch.ones(1, 1, 1, 1), iterations=4, schedule=lambda share: 1 - share, learning_rate=0.1)
    steps = [first - second for first, second in pairwise(seen)]
    assert steps == pytest.approx([0.1, 0.075, 0.05, 0.025], rel=1e-4)


class Counting(Task):
    def __init__(self) -> None:
        self.steps = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps


@pytest.mark.parametrize("iterations", [1, 99, 100, 101, 150, 1000])
def test_history_has_at_most_100_points_at_even_distances(iterations: int) -> None:
    task = Counting()
    found = run(distance_to(0.0), iterations=iterations, task=task)
    every = math.ceil(iterations / 100)
    assert len(found.history) == math.ceil(iterations / every) <= 100
    assert found.history[0] == pytest.approx(4 * 0.81)
    assert task.steps == iterations


def test_repeatable_from_its_generator() -> None:
    first, second = (run(distance_to(0.0), energy_noise=1.0).images for _ in range(2))
    assert torch.equal(first, second)
