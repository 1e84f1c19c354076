"""Differences and how sure they are: bootstrap within seeds, effect sizes, many at once, and what would settle them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from shadow_defense.errors import DataError
from shadow_defense.metrics.confidence import LEVEL, Estimate
from shadow_defense.metrics.intervals import DRAWS
from shadow_defense.seeds import named_generator

Strata = Mapping[int, Sequence[float]]
"""Values of images by seed."""


@dataclass(frozen=True)
class Contrast:
    """A paired difference.

    Attributes:
        effect: mean over standard deviation of the differences (Cohen's d_z); None where they do not vary.
        p: two-sided, of a mean of 0, by the bootstrap; never below ``2 / (draws + 1)``.
    """

    difference: Estimate
    effect: float | None
    p: float


def resampled_means(values: Strata, seed: int) -> Float64[Tensor, " draws"]:
    """The mean over all images of each resample, in which every seed's images are drawn anew among themselves.

    Images of one seed share a training; resampling over all of them together would mix what seeds differ by into the
    images. How the next training would turn out is not covered.

    Raises:
        DataError: without values.
    """
    count = sum(map(len, values.values()))
    if count == 0:
        raise DataError("no values to resample: give at least one")
    total = torch.zeros(DRAWS, dtype=torch.float64)
    for stratum, each in values.items():
        own = torch.tensor(each, dtype=torch.float64)
        draws = named_generator(seed, "contrast", stratum)
        total += own[torch.randint(len(own), (DRAWS, len(own)), generator=draws)].sum(dim=1)
    return total / count


def within_seeds(values: Strata, seed: int = 0) -> Estimate:
    """Mean over all images with its 95 % percentile interval of :func:`resampled_means`; none for a single image.

    >>> within_seeds({0: [1.0, 1.0], 1: [3.0, 3.0]})
    Estimate(mean=2.0, interval=(2.0, 2.0), count=4)
    """
    means = resampled_means(values, seed)
    each = [value for own in values.values() for value in own]
    return Estimate(math.fsum(each) / len(each), ends(means) if len(each) > 1 else None, len(each))


def ends(draws: Float64[Tensor, " draws"]) -> tuple[float, float]:
    """The 95 % percentile interval of resamples."""
    low, high = draws.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return low, high


def two_sided(draws: Float64[Tensor, " draws"]) -> float:
    """``2 (1 + min(draws <= 0, draws >= 0)) / (draws + 1)``, at most 1: how sure the sign of the mean is."""
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (len(draws) + 1))


def contrast(differences: Strata, seed: int = 0) -> Contrast:
    """Of paired differences by seed. Raises :class:`DataError` without any."""
    each = torch.tensor([value for own in differences.values() for value in own], dtype=torch.float64)
    spread = float(each.std()) if len(each) > 1 else 0.0
    draws = resampled_means(differences, seed)
    return Contrast(within_seeds(differences, seed), float(each.mean()) / spread if spread else None, two_sided(draws))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values (Holm 1979): the i-th smallest of m times ``m - i + 1``, ascending, at most 1.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted, reached = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda each: p[each])):
        reached = max(reached, min(1.0, (len(p) - place) * p[name]))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p}


def images_to_settle(estimate: Estimate, bar: float) -> int | None:
    """How many images, at the same mean and spread, bring the interval to one side of ``bar``.

    ``n (h / |mean - bar|)^2``, h from the mean to the interval's end on the bar's side: an interval narrows with the
    root of n. So it is never fewer than n where the bar lies within. None where the mean lies at the bar, or there is
    no interval.

    >>> images_to_settle(Estimate(1.0, (-1.0, 3.0), 50), 0.0)
    200
    """
    if estimate.interval is None or estimate.mean == bar:
        return None
    low, high = estimate.interval
    half = high - estimate.mean if bar > estimate.mean else estimate.mean - low
    return math.ceil(estimate.count * (half / abs(estimate.mean - bar)) ** 2)
