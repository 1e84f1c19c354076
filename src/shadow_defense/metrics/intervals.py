"""Intervals that the risks need beyond a mean's: of a difference of groups, a slope, a ratio, and of macro F1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from shadow_defense.errors import DataError
from shadow_defense.metrics.confidence import LEVEL, Estimate, mean_interval
from shadow_defense.seeds import named_generator

DRAWS = 2000
"""Resamples of the bootstrap."""


def welch_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of ``first`` minus mean of ``second``, two groups of different images, with Welch's 95 % interval.

    ``d ± t(0.975, v) sqrt(s1^2/n1 + s2^2/n2)`` with Welch and Satterthwaite's v; without an interval where a group
    has one value. ``count`` is of both groups together.

    Raises:
        DataError: when a group is empty or holds a value that is not finite.

    >>> found = welch_difference([3.0, 5.0], [1.0, 1.0])
    >>> found.mean, [round(end, 2) for end in found.interval]
    (3.0, [-9.71, 15.71])
    """
    from scipy.special import stdtrit

    means = [mean_interval(group).mean for group in (first, second)]
    difference, counts = means[0] - means[1], (len(first), len(second))
    if min(counts) < 2:
        return Estimate(difference, None, sum(counts))
    shares = [
        math.fsum((value - mean) ** 2 for value in group) / (len(group) - 1) / len(group)
        for group, mean in zip((first, second), means, strict=True)
    ]
    if sum(shares) == 0:
        return Estimate(difference, (difference, difference), sum(counts))
    spread = sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))
    half = float(stdtrit(sum(shares) ** 2 / spread, (1 + LEVEL) / 2)) * math.sqrt(sum(shares))
    return Estimate(difference, (difference - half, difference + half), sum(counts))


def slope(places: Sequence[int], values: Sequence[float]) -> float:
    """The least-squares slope of values over places; at least two different places.

    >>> slope([1, 2, 4], [0.0, 1.0, 3.0])
    1.0
    """
    middle, mean = math.fsum(places) / len(places), math.fsum(values) / len(values)
    above = math.fsum((place - middle) * (value - mean) for place, value in zip(places, values, strict=True))
    return above / math.fsum((place - middle) ** 2 for place in places)


def mean_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """The geometric mean of paired ratios, with the 95 % interval of the mean logarithm; all values above 0.

    >>> mean_ratio([2.0, 8.0], [1.0, 1.0]).mean
    4.0
    """
    pairs = zip(numerators, denominators, strict=True)
    found = mean_interval([math.log(above / below) for above, below in pairs])
    ends = None if found.interval is None else (math.exp(found.interval[0]), math.exp(found.interval[1]))
    return Estimate(math.exp(found.mean), ends, found.count)


def share_interval(hits: Sequence[float]) -> Estimate:
    """The mean of what is 0 or 1, with Clopper and Pearson's 95 % interval; parts of a hit count as such.

    A bootstrap of nothing but zeros would have no width.

    >>> found = share_interval([0.0] * 300)
    >>> found.mean, [round(end, 4) for end in found.interval]
    (0.0, [0.0, 0.0122])
    """
    from scipy.special import betaincinv

    count, hit = len(hits), math.fsum(hits)
    tail = (1 - LEVEL) / 2
    low = 0.0 if hit <= 0 else float(betaincinv(hit, count - hit + 1, tail))
    high = 1.0 if hit >= count else float(betaincinv(hit + 1, count - hit, 1 - tail))
    return Estimate(hit / count, (low, high), count)


def macro_f1(
    predicted: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], weights: Float64[Tensor, "draws n"], classes: int
) -> Float64[Tensor, " draws"]:
    """Macro F1 of each weighting of the images: the mean of F1 over the classes present or predicted.

    ``weights`` counts how often each image is in the sample; ones give the plain macro F1.
    """
    total, present = torch.zeros(len(weights), dtype=torch.float64), torch.zeros(len(weights), dtype=torch.float64)
    for label in range(classes):
        said, is_so = (predicted == label).double(), (labels == label).double()
        both, either = weights @ (said * is_so), weights @ said + weights @ is_so
        total += torch.where(either > 0, 2 * both / either.clamp_min(1), torch.zeros_like(both))
        present += (either > 0).double()
    return total / present


def f1_difference(
    predicted: Int64[Tensor, " n"], reference: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], classes: int, seed: int
) -> Estimate:
    """Macro F1 of one model minus another's on the same images, with a 95 % bootstrap interval over images.

    Percentiles of 2000 resamples, both models on the same one. It says how sure the images make us, not how the
    next training would turn out.

    Raises:
        DataError: without images.
    """
    if len(labels) == 0:
        raise DataError("no test images to compare two models on: raise data.test_fraction")
    once = torch.ones(1, len(labels), dtype=torch.float64)
    drawn = torch.randint(len(labels), (DRAWS, len(labels)), generator=named_generator(seed, "bootstrap", "f1"))
    counts = torch.zeros(DRAWS, len(labels), dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(drawn.shape).double()
    )

    def difference(weights: Tensor) -> Tensor:
        return macro_f1(predicted, labels, weights, classes) - macro_f1(reference, labels, weights, classes)

    ends = difference(counts).quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64))
    return Estimate(float(difference(once)), (float(ends[0]), float(ends[1])), len(labels))
