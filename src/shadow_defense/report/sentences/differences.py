"""Differences that may be spoken of: those whose 95 % interval leaves out zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shadow_defense.report.kit.formatting import MINUS, signed_with_interval

Measure = Mapping[str, Any]


def direction(difference: Measure | None) -> int:
    """-1 clearly lower, 1 clearly higher, 0 neither; a difference without an interval is never clear.

    >>> direction({"mean": -2.0, "interval": [-3.0, -1.0]}), direction({"mean": -2.0, "interval": [-5.0, 1.0]})
    (-1, 0)
    >>> direction({"mean": 2.0, "interval": None}), direction(None)
    (0, 0)
    """
    if difference is None or difference["interval"] is None:
        return 0
    low, high = difference["interval"]
    return -1 if high < 0 else 1 if low > 0 else 0


def unpaired_difference(first: Measure | None, second: Measure | None) -> dict[str, Any] | None:
    """``first - second`` of two means whose pairs are not known, with half widths ``sqrt(a^2 + b^2)``.

    That takes the two as independent. Both stand on the same images, which makes the true interval narrower: what
    is clear here is clear, what is not may be. None where either is missing, no interval where either has none.

    >>> unpaired_difference({"mean": 5.0, "interval": [2.0, 8.0]}, {"mean": 1.0, "interval": [-3.0, 5.0]})
    {'mean': 4.0, 'interval': [-1.0, 9.0]}
    """
    if first is None or second is None:
        return None
    mean = first["mean"] - second["mean"]
    if first["interval"] is None or second["interval"] is None:
        return {"mean": mean, "interval": None}
    # From the mean to the further end, should an interval not lie evenly around it.
    half = math.hypot(*(max(m["mean"] - m["interval"][0], m["interval"][1] - m["mean"]) for m in (first, second)))
    return {"mean": mean, "interval": [mean - half, mean + half]}


def spoken(difference: Measure, digits: int, unit: str = "") -> str:
    """A difference as sentences write it.

    >>> spoken({"mean": -2.0, "interval": [-3.0, -1.0]}, 1, "dB")
    '-2.0 ± 1.0 dB'
    """
    text = signed_with_interval(difference["mean"], difference["interval"], digits).replace("\N{NO-BREAK SPACE}", " ")
    return text.replace(MINUS, "-") + (f" {unit}" if unit else "")


def sentences_of(opening: str, clauses: list[str]) -> list[str]:
    """A sentence a clause, or one for all where more than two would follow one another.

    >>> sentences_of("seen ", ["here", "there"]), sentences_of("seen ", ["here", "there", "nowhere"])
    (['seen here.', 'seen there.'], ['seen here; there; nowhere.'])
    """
    if len(clauses) > 2:
        return [f"{opening}{'; '.join(clauses)}."]
    return [f"{opening}{clause}." for clause in clauses]
