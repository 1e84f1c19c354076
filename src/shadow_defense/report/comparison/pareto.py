"""Which points of a privacy-utility plane are worth choosing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shadow_defense.errors import DataError
from shadow_defense.report.formatting import metric_and_region, metric_named


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point, whether no other is at least as good in every coordinate and better in one.

    Larger is better in every coordinate: negate one that is better when smaller. Equal points do not dominate one
    another: all of them are on the front, or none.

    Raises:
        DataError: when a coordinate is NaN or infinite.

    >>> pareto_front([(0.9, 0.1), (0.5, 0.5), (0.4, 0.5), (0.1, 0.9)])
    [True, True, False, True]
    """
    if not all(math.isfinite(value) for point in points for value in point):
        raise DataError("a point of the plane is NaN or infinite: leave out what was not measured")
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(other: Sequence[float], point: Sequence[float]) -> bool:
    pairs = list(zip(other, point, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def goodness(metric: str, point: Mapping[str, Any]) -> tuple[float, float]:
    """Privacy and utility of a plane's point, both better when larger.

    >>> goodness("ssim_whole", {"privacy": {"mean": 0.4}, "utility": {"mean": 0.8}})
    (-0.4, 0.8)
    """
    sign = -1.0 if metric_named(metric_and_region(metric)[0]).higher_is_closer else 1.0
    return sign * point["privacy"]["mean"], point["utility"]["mean"]


def plane_front(metric: str, points: Sequence[Mapping[str, Any]]) -> list[bool]:
    """``on_front`` for the points of a plane of that metric (keys ``privacy`` and ``utility``, see content.py)."""
    return pareto_front([goodness(metric, point) for point in points])
