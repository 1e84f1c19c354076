"""The weakest strength whose leakage stays below a target, by bisection over anything that can be measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shadow_defense.errors import DataError
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.metrics.limit import Limit
from shadow_defense.report.records.calibration import Bisected, Crossing, Leakage, Outcome, Rise
from shadow_defense.shadow.noise import Schedule

DIGITS = 4
"""Decimals of a strength: what a folder's name and a pasted setting hold."""


class CalibrationSettings(BaseModel):
    """What is sought, and how closely."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Limit = Field(
        Limit("rdlv", 0.25), description="what the upper end of the mean's interval must stay below: ssim, psnr or rdlv"
    )
    attack: str | None = Field(None, description="one of the configuration's attacks; null: the first")
    schedules: tuple[Schedule, ...] = Field(
        ("growing", "constant"), min_length=1, description="schedules of the strength, each calibrated for itself"
    )
    tolerance: float = Field(0.05, ge=0.001, le=1, description="width of the bracket at which bisection stops")
    most: float = Field(3.0, gt=0, le=100, description="greatest strength tried")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="of the trainings of each setting, each with another split, model and attack start; null: the "
        "configuration's and the next",
    )


def worst_round(values: Mapping[int, Mapping[str, Sequence[float]]]) -> Leakage:
    """The leakage in the worst round, from ``values[round][image]``, one value for each seed that attacked the image.

    An image's seeds are averaged first: they are not independent. The intervals are Student's t over images.

    Raises:
        DataError: when a round has fewer than two images, which give no interval.

    >>> worst_round({1: {"a": [0.0, 2.0], "b": [1.0]}, 4: {"a": [0.5], "b": [0.5]}})
    Leakage(mean=1.0, low=1.0, high=1.0, round=1, images=2)
    """
    measured = {}
    for round, images in values.items():
        if len(images) < 2:
            raise DataError(f"round {round} has {len(images)} scored images: two at least are needed for an interval")
        measured[round] = mean_interval([math.fsum(seeds) / len(seeds) for seeds in images.values()])
    worst = max(measured, key=lambda round: measured[round].mean)
    intervals = {round: result.interval for round, result in measured.items() if result.interval is not None}
    return Leakage(
        mean=measured[worst].mean,
        low=intervals[worst][0],
        high=max(high for _, high in intervals.values()),
        round=worst,
        images=measured[worst].count,
    )


Points = Mapping[float, Leakage]
Below = Callable[[Leakage], bool]


def crossing(points: Points, below: Below) -> Crossing:
    """The strongest measured strength at which ``below`` fails, and the next stronger one."""
    fails = max((strength for strength, leakage in points.items() if not below(leakage)), default=-math.inf)
    holds = min((strength for strength in points if strength > fails), default=None)
    return Crossing(None if fails == -math.inf else fails, holds)


def bisected(points: Points, target: float) -> Bisected:
    """What follows from ``points``, the leakage at each measured strength, weakest first; 0 is no defense."""
    leaks, certain = list(points.values()), crossing(points, lambda leakage: leakage.high < target)
    enough: Outcome = "found" if leaks[-1].high < target else "not enough"
    return Bisected(
        outcome="not needed" if leaks[0].high < target else enough,
        certain=certain,
        average=crossing(points, lambda leakage: leakage.mean < target),
        leaks=crossing(points, lambda leakage: leakage.low < target).fails,
        rises=tuple(
            Rise(weaker, stronger, clear=after.low > before.high)
            for (weaker, before), (stronger, after) in itertools.pairwise(points.items())
            if after.mean > before.mean
        ),
        held_earlier=tuple(
            strength
            for strength, leakage in points.items()
            if certain.fails is not None and strength < certain.fails and leakage.high < target
        ),
    )


def calibrate(
    measure: Callable[[float], Leakage], target: float, *, most: float, tolerance: float
) -> tuple[Points, Bisected]:
    """Bisect for the weakest strength at which the leakage is below ``target``: surely, then on average.

    First the upper ends of the intervals, then the means are followed from 0 and ``most`` to a bracket no wider than
    ``tolerance``; no strength is measured twice. Both searches take at most ``2 + 2 ceil(log2(most / tolerance))``
    measurements. Bisection believes that more noise leaks less; measurements that say otherwise are in
    ``rises`` and ``held_earlier``, and what is reported as certain is a strength that was measured, with every
    stronger measured one, as below the target.

    Args:
        measure: the leakage at a strength (4 decimals); with noise, it must answer alike for the same strength.

    >>> _, found = calibrate(lambda s: Leakage(1 - s, 0.8 - s, 1.2 - s, 1, 8), 0.5, most=2.0, tolerance=0.1)
    >>> found.outcome, found.certain, found.average
    ('found', Crossing(fails=0.6875, holds=0.75), Crossing(fails=0.5, holds=0.5625))
    """
    points = {0.0: measure(0.0)}
    if points[0.0].high >= target:
        points[most] = measure(most)
        _bisect(points, measure, lambda leakage: leakage.high < target, tolerance)
        _bisect(points, measure, lambda leakage: leakage.mean < target, tolerance)
    ordered = dict(sorted(points.items()))
    return ordered, bisected(ordered, target)


def _bisect(points: dict[float, Leakage], measure: Callable[[float], Leakage], below: Below, tolerance: float) -> None:
    while True:
        found = crossing(points, below)
        if found.fails is None or found.holds is None or found.holds - found.fails <= tolerance:
            return
        middle = round((found.fails + found.holds) / 2, DIGITS)
        points[middle] = measure(middle)
