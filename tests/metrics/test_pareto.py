"""The front holds exactly the points that no other dominates, whatever their order."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_defense.errors import DataError
from shadow_defense.metrics.pareto import pareto_front

# Few values, so that ties are drawn often.
COORDINATE = st.integers(0, 5).map(float)
POINTS = st.lists(st.tuples(COORDINATE, COORDINATE), max_size=12)


@given(POINTS)
def test_front_is_empty_only_where_there_are_no_points(points: list[tuple[float, float]]) -> None:
    assert any(pareto_front(points)) == bool(points)


@given(POINTS)
def test_front_ascends_in_one_coordinate_and_falls_in_the_other(points: list[tuple[float, float]]) -> None:
    front = sorted({point for point, on in zip(points, pareto_front(points), strict=True) if on})
    assert all(b[0] > a[0] and b[1] < a[1] for a, b in itertools.pairwise(front))


@given(POINTS)
def test_whoever_is_not_on_the_front_is_dominated_by_one_who_is(points: list[tuple[float, float]]) -> None:
    on = pareto_front(points)
    front = [point for point, kept in zip(points, on, strict=True) if kept]
    for point, kept in zip(points, on, strict=True):
        dominating = [each for each in front if each != point and each[0] >= point[0] and each[1] >= point[1]]
        assert bool(dominating) != kept


@given(POINTS.flatmap(lambda points: st.tuples(st.just(points), st.permutations(range(len(points))))))
def test_order_does_not_matter(drawn: tuple[list[tuple[float, float]], list[int]]) -> None:
    points, order = drawn
    on = pareto_front(points)
    assert pareto_front([points[index] for index in order]) == [on[index] for index in order]


@given(POINTS, st.tuples(COORDINATE, COORDINATE))
def test_a_dominated_point_changes_nothing(points: list[tuple[float, float]], point: tuple[float, float]) -> None:
    points = [*points, point]
    assert pareto_front([*points, (point[0] - 1, point[1] - 1)]) == [*pareto_front(points), False]


@given(POINTS)
def test_stretching_an_axis_changes_nothing(points: list[tuple[float, float]]) -> None:
    assert pareto_front([(math.exp(x), 3 * y - 7) for x, y in points]) == pareto_front(points)


def test_equal_points_share_their_fate() -> None:
    assert pareto_front([(1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0)]) == [True, True, False, False]


def test_nan_is_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        pareto_front([(math.nan, 1.0)])
