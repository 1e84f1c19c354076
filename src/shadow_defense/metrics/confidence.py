"""A mean and how sure of it one may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shadow_defense.errors import DataError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` values with its 95 % interval (low, high), or None where one value gives none."""

    mean: float
    interval: tuple[float, float] | None
    count: int

    def clear(self, nothing: float = 0.0) -> bool | None:
        """Whether the interval leaves out ``nothing``, the only test of significance here; None without an interval.

        >>> Estimate(1.0, (0.5, 1.5), 8).clear(), Estimate(1.0, (-0.5, 2.5), 8).clear(), Estimate(1.0, None, 1).clear()
        (True, False, None)
        """
        return None if self.interval is None else not self.interval[0] <= nothing <= self.interval[1]

    def as_record(self) -> dict[str, float | int | None]:
        """Plain values for JSON: mean, low, high, count."""
        low, high = self.interval or (None, None)
        return {"mean": self.mean, "low": low, "high": high, "count": self.count}


def mean_interval(values: Sequence[float]) -> Estimate:
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
        return Estimate(mean, None, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count)
    return Estimate(mean, (mean - half, mean + half), count)


def psnr_of_mean_error(psnrs: Sequence[float]) -> Estimate:
    """``-10 log10`` of the mean squared error of images with these PSNRs (dB), with the interval of that mean.

    By Jensen's inequality never above the mean of the PSNRs. Where the error's interval reaches 0 it has no upper end,
    and there is none.

    >>> round(psnr_of_mean_error([10.0, 20.0]).mean, 2)
    12.6
    """
    error = mean_interval([10 ** (-each / 10) for each in psnrs])
    ends = error.interval
    interval = None if ends is None or ends[0] <= 0 else (-10 * math.log10(ends[1]), -10 * math.log10(ends[0]))
    return Estimate(-10 * math.log10(error.mean), interval, error.count)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of ``first - second`` over pairs, with its 95 % interval.

    For two measurements of the same images or seeds: what varies from image to image cancels, so that the
    interval is narrower than that of two separate means.

    Raises:
        DataError: when the lists differ in length, are empty, or hold a value that is not finite.

    >>> paired_difference([3.0, 5.0], [1.0, 3.0])
    Estimate(mean=2.0, interval=(2.0, 2.0), count=2)
    """
    if len(first) != len(second):
        raise DataError(f"{len(first)} values against {len(second)}: give the same images or seeds in both lists")
    return mean_interval([a - b for a, b in zip(first, second, strict=True)])
