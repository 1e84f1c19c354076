"""Differences as sentences speak of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.formatting import listed, plain, signed_with_interval

_MOST_NAMES = 4


def direction(difference: Estimate | None) -> int:
    """-1 clearly lower, 1 clearly higher, 0 neither; a difference without an interval is never clear.

    >>> direction(Estimate(-2.0, (-3.0, -1.0), 8)), direction(Estimate(-2.0, (-5.0, 1.0), 8)), direction(None)
    (-1, 0, 0)
    """
    if difference is None or not difference.clear():
        return 0
    return 1 if difference.mean > 0 else -1


def unpaired_difference(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    """``first - second`` of two means whose pairs are not known, with half widths ``sqrt(a^2 + b^2)``.

    That takes the two as independent. Both stand on the same images, which makes the true interval narrower: what
    is clear here is clear, what is not may be. None where either is missing, no interval where either has none.

    >>> unpaired_difference(Estimate(5.0, (2.0, 8.0), 9), Estimate(1.0, (-3.0, 5.0), 9))
    Estimate(mean=4.0, interval=(-1.0, 9.0), count=9)
    """
    if first is None or second is None:
        return None
    mean, count = first.mean - second.mean, min(first.count, second.count)
    if first.interval is None or second.interval is None:
        return Estimate(mean, None, count)
    # From the mean to the further end, should an interval not lie evenly around it.
    ends = ((each.mean, each.interval) for each in (first, second) if each.interval is not None)
    half = math.hypot(*(max(middle - low, high - middle) for middle, (low, high) in ends))
    return Estimate(mean, (mean - half, mean + half), count)


def spoken(difference: Estimate, digits: int, unit: str = "") -> str:
    """A difference as sentences write it.

    >>> spoken(Estimate(-2.0, (-3.0, -1.0), 8), 1, "dB")
    '-2.0 ± 1.0 dB'
    """
    text = plain(signed_with_interval(difference, digits))
    return text + (f" {unit}" if unit else "")


def sentences_of(opening: str, clauses: list[str]) -> list[str]:
    """A sentence a clause, or one for all where more than two would follow one another.

    >>> sentences_of("seen ", ["here", "there"]), sentences_of("seen ", ["here", "there", "nowhere"])
    (['seen here.', 'seen there.'], ['seen here; there; nowhere.'])
    """
    if len(clauses) > 2:
        return [f"{opening}{'; '.join(clauses)}."]
    return [f"{opening}{clause}." for clause in clauses]


def some(names: Sequence[str]) -> str:
    """Not more names than a sentence bears.

    >>> some(list("abcdef"))
    'a, b, c, d and 2 more'
    """
    if len(names) <= _MOST_NAMES:
        return listed(names)
    return listed([*names[:_MOST_NAMES], f"{len(names) - _MOST_NAMES} more"])


def counted_names(names: Sequence[str]) -> str:
    """How many, and which.

    >>> counted_names(["a", "b"]), counted_names([])
    ('2 (a and b)', '0')
    """
    return f"{len(names)} ({some(names)})" if names else "0"
