"""A mean and how sure of it one may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shadow_defense.errors import DataError

LEVEL = 0.95


@dataclass(frozen=True)
class MeanInterval:
    """A mean over ``count`` values with its 95 % interval (low, high), or None where one value gives none."""

    mean: float
    interval: tuple[float, float] | None
    count: int


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Mean with its two-sided 95 % Student-t interval, ``mean ± t(0.975, n - 1) s / sqrt(n)``.

    ``s`` is the sample standard deviation (divisor n - 1). The values are taken as independent draws: images of
    one patient or one batch are not quite that, and their interval is too narrow.

    Raises:
        DataError: when there are no values or one is not finite.

    >>> result = mean_interval([1.0, 2.0, 3.0])
    >>> result.mean, [round(end, 3) for end in result.interval]
    (2.0, [-0.484, 4.484])
    """
    from scipy.special import stdtrit

    count = len(values)
    if count == 0:
        raise DataError("no values to average: give at least one")
    if not all(math.isfinite(value) for value in values):
        raise DataError("a value to average is NaN or infinite: leave out what was not measured")
    mean = math.fsum(values) / count
    if count == 1:
        return MeanInterval(mean, None, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count)
    return MeanInterval(mean, (mean - half, mean + half), count)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> MeanInterval:
    """Mean of ``first - second`` over pairs, with its 95 % interval.

    For two measurements of the same images or seeds: what varies from image to image cancels, so that the
    interval is narrower than that of two separate means.

    Raises:
        DataError: when the lists differ in length, are empty, or hold a value that is not finite.

    >>> paired_difference([3.0, 5.0], [1.0, 3.0])
    MeanInterval(mean=2.0, interval=(2.0, 2.0), count=2)
    """
    if len(first) != len(second):
        raise DataError(f"{len(first)} values against {len(second)}: give the same images or seeds in both lists")
    return mean_interval([a - b for a, b in zip(first, second, strict=True)])
