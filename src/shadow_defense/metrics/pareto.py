"""Which points are worth choosing where two things are wanted at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shadow_defense.errors import DataError


def dominates(other: Sequence[float], point: Sequence[float]) -> bool:
    """Whether ``other`` is at least as good as ``point`` in every coordinate and better in one; larger is better.

    >>> dominates((0.5, 0.5), (0.4, 0.5)), dominates((0.5, 0.5), (0.5, 0.5)), dominates((0.9, 0.1), (0.5, 0.5))
    (True, False, False)
    """
    pairs = list(zip(other, point, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point, whether no other dominates it (:func:`dominates`).

    Negate a coordinate that is better when smaller. Equal points do not dominate one another: all of them are on the
    front, or none.

    Raises:
        DataError: when a coordinate is NaN or infinite.

    >>> pareto_front([(0.9, 0.1), (0.5, 0.5), (0.4, 0.5), (0.1, 0.9)])
    [True, True, False, True]
    """
    if not all(math.isfinite(value) for point in points for value in point):
        raise DataError("a point of the plane is NaN or infinite: leave out what was not measured")
    return [not any(dominates(other, point) for other in points) for point in points]
