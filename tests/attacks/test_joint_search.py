"""Several restarts in one loop, and where GIFD's variables may go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shadow_defense.attacks.evolution import evolve
from shadow_defense.attacks.ggl import latent_divergence
from shadow_defense.attacks.gifd import spread_layers
from shadow_defense.attacks.joint_search import JointFound, RestartLosses, ramped_schedule, search_jointly
from shadow_defense.attacks.l1_ball import project_to_l1_ball, retract_to_sphere


def run(losses: object, initial: list[Tensor], iterations: int = 300, **changes: object) -> JointFound:
    given = {"iterations": iterations, "learning_rate": 0.1, "schedule": lambda share: 1 - share, "record_every": 10}
    return search_jointly(losses, initial, **{**given, **changes})  # type: ignore[arg-type]


def valleys(variables: tuple[Tensor, ...]) -> RestartLosses:
    """Two valleys in each of two variables, of different depth."""
    total = sum(((each.flatten(1).square() - 1).square() + 0.3 * each.flatten(1)).sum(1) for each in variables)
    return RestartLosses(total, total.detach())


@pytest.mark.slow
def test_each_restart_goes_the_way_that_it_goes_alone() -> None:
    draws = torch.Generator().manual_seed(0)
    starts = [torch.randn(5, 2, 3, generator=draws), torch.randn(5, 4, generator=draws)]
    together = run(valleys, starts)
    for restart in range(5):
        alone = run(valleys, [start[restart : restart + 1] for start in starts])
        for ours, theirs in zip(together.variables, alone.variables, strict=True):
            torch.testing.assert_close(ours[restart], theirs[0])
    assert together.best_restart() == int(together.matching.argmin())
    assert together.total.unique().numel() > 1
    assert together.history.shape == (5, 30)


def test_one_restart_astray_does_not_lead_the_others_astray() -> None:
    def losses(variables: tuple[Tensor, ...]) -> RestartLosses:
        (x,) = variables
        total = (x - 2).square().sum(1) * torch.tensor([1.0, math.nan, 1.0])
        return RestartLosses(total, total.detach())

    found = run(losses, [torch.zeros(3, 2)])
    torch.testing.assert_close(found.variables[0][[0, 2]], torch.full((2, 2), 2.0), rtol=0, atol=1e-2)
    assert torch.equal(found.variables[0][1], torch.zeros(2))
    assert found.matching[1] == math.inf and found.best_restart() != 1


def test_the_best_iterate_is_returned_with_its_own_losses() -> None:
    """Totals of each restart are least at an evaluation of its own."""
    calls: list[Tensor] = []

    def losses(variables: tuple[Tensor, ...]) -> RestartLosses:
        calls.append(variables[0].detach().clone())
        total = variables[0].sum(1) * 1e-9 + torch.tensor([abs(len(calls) - 4.0), abs(len(calls) - 9.0)])
        return RestartLosses(total, torch.tensor([100.0, 200.0]) - len(calls))

    found = run(losses, [torch.zeros(2, 1)], iterations=12)
    assert len(calls) == 13
    assert torch.equal(found.variables[0][0], calls[3][0]) and torch.equal(found.variables[0][1], calls[8][1])
    assert found.matching.tolist() == [96.0, 191.0]


def test_a_variable_that_the_loss_does_not_reach_stays() -> None:
    found = run(lambda variables: valleys(variables[:1]), [torch.ones(2, 1), torch.full((2, 3), 0.5)])
    assert torch.equal(found.variables[1], torch.full((2, 3), 0.5))


def test_evolution_survives_losses_that_are_not_numbers() -> None:
    def losses(codes: Tensor) -> RestartLosses:
        total = (codes - 1).square().flatten(1).sum(1)
        total[::3] = math.nan
        return RestartLosses(total, total)

    pytest.importorskip("cma")
    arguments = {"iterations": 60, "population": 12, "draws": torch.Generator().manual_seed(0)}
    found = evolve(losses, torch.zeros(2, 3), torch.ones(3), **arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(found.variables[0], torch.ones(1, 2, 3), rtol=0, atol=0.05)
    assert found.matching[0] < 0.01


@settings(max_examples=60)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    st.floats(0.01, 10),
    st.integers(0, 2**31),
)
def test_projection_to_the_l1_ball_is_the_nearest_point(point: list[float], radius: float, seed: int) -> None:
    """No feasible point is nearer: the angle to every one is obtuse, which holds for the projection alone."""
    given_point = torch.tensor([point], dtype=torch.float64)
    projected = project_to_l1_ball(given_point, torch.tensor([radius], dtype=torch.float64))
    assert projected.abs().sum() <= radius * (1 + 1e-9)
    if given_point.abs().sum() <= radius:
        torch.testing.assert_close(projected, given_point)
    directions = torch.randn(50, len(point), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corners = torch.cat([torch.eye(len(point), dtype=torch.float64), -torch.eye(len(point), dtype=torch.float64)])
    feasible = torch.cat([corners, directions / directions.abs().sum(1, keepdim=True)]) * radius
    assert ((given_point - projected) * (feasible - projected)).sum(1).max() <= 1e-9


def test_projection_is_by_row() -> None:
    points = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    radii = torch.tensor([0.5, 2.0, 100.0])
    together = project_to_l1_ball(points, radii)
    for row in range(3):
        torch.testing.assert_close(
            together[row : row + 1], project_to_l1_ball(points[row : row + 1], radii[row : row + 1])
        )
    torch.testing.assert_close(together.flatten(1).abs().sum(1)[:2], radii[:2])


def test_retraction_keeps_directions() -> None:
    points = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    torch.testing.assert_close(
        retract_to_sphere(points, torch.tensor([10.0, 1.0])), torch.tensor([[6.0, 8.0], [0.0, 1.0]])
    )


def test_schedules_of_both_papers() -> None:
    assert [ramped_schedule(t, 0.05, 0.75) for t in (0.0, 0.05, 0.25, 0.625, 1.0)] == pytest.approx(
        [0, 1, 1, 0.5, 0], abs=1e-12
    )


def test_divergence_is_that_of_two_normal_distributions() -> None:
    codes = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 1.7 + 0.4
    for code, ours in zip(codes, latent_divergence(codes), strict=True):
        fitted = torch.distributions.Normal(code.mean(), code.std(unbiased=False))
        expected = torch.distributions.kl_divergence(fitted, torch.distributions.Normal(0.0, 1.0))
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("available", range(1, 17))
def test_layers_are_there_and_ascend(available: int) -> None:
    for stages in range(1, 18):
        layers = spread_layers(available, stages)
        assert len(layers) == min(available, stages)
        assert list(layers) == sorted(set(layers)) and layers[0] == 0 and layers[-1] < available


def test_what_pulls_is_minimised_but_iterates_are_not_compared_by_it() -> None:
    """The pull leads away from the minimum at 0: the iterate that is returned is the one at the start."""

    def losses(variables: tuple[Tensor, ...]) -> RestartLosses:
        (x,) = variables
        total = x.square().sum(1)
        return RestartLosses(total, total.detach(), pull=10 * (x - 1).square().sum(1))

    seen: list[Tensor] = []

    def watch(variables: tuple[Tensor, ...]) -> None:
        seen.append(variables[0].detach().clone())

    found = run(losses, [torch.full((2, 1), 0.1)], constrain=watch)
    torch.testing.assert_close(seen[-1], torch.full((2, 1), 10 / 11), rtol=0, atol=1e-2)
    assert torch.equal(found.variables[0], torch.full((2, 1), 0.1))
    assert found.total.tolist() == pytest.approx([0.01, 0.01])


def test_ends_where_every_restart_is_stalled() -> None:
    """The first is at its minimum from the start; the second needs 20 steps of 0.1, and then 2 rounds of patience."""
    calls: list[int] = []

    def losses(variables: tuple[Tensor, ...]) -> RestartLosses:
        (x,) = variables
        calls.append(len(x))
        total = x.abs().sum(1) + 1
        return RestartLosses(total, total.detach())

    def count(start: list[float]) -> int:
        calls.clear()
        initial = torch.tensor(start).unsqueeze(1)
        run(losses, [initial], sign=lambda g, _: g.sign(), schedule=lambda _: 1.0, patience=10)
        return len(calls)

    assert count([0.0, 0.0]) == 20 + 1
    assert 30 < count([0.0, 2.0]) < 60
    assert count([0.0, 50.0]) == 300 + 1


def test_sign_and_noise_see_the_share_and_the_rate() -> None:
    shares: list[float] = []
    rates: list[float] = []

    def sign(gradient: Tensor, share: float) -> Tensor:
        shares.append(share)
        return gradient.sign()

    def noise(variable: Tensor, rate: float) -> Tensor:
        rates.append(rate)
        return torch.full_like(variable, 100.0)

    found = run(valleys, [torch.full((1, 2), 9.0)], iterations=4, sign=sign, noise=noise)
    assert shares == [0.0, 0.25, 0.5, 0.75]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    # Every iterate after the noise is worse than the start.
    assert torch.equal(found.variables[0], torch.full((1, 2), 9.0))
