"""Student-t intervals against SciPy and by what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shadow_defense.errors import DataError
from shadow_defense.metrics.confidence import mean_interval, paired_difference
from shadow_defense.seeds import seed_for


def draws(count: int, name: str = "draws") -> np.ndarray:
    return np.random.default_rng(seed_for(0, name)).normal(20.0, 3.0, count)


@pytest.mark.parametrize("count", [2, 3, 5, 30, 500])
def test_equals_scipy(count: int) -> None:
    values = draws(count)
    result = mean_interval(values.tolist())
    expected = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (result.mean, result.count) == (pytest.approx(values.mean(), rel=1e-12), count)
    assert result.interval == pytest.approx(expected, rel=1e-9)


def test_one_value_has_no_interval() -> None:
    result = mean_interval([7.0])
    assert (result.mean, result.interval, result.count) == (7.0, None, 1)


def test_the_interval_covers_the_mean_in_95_of_100_samples() -> None:
    samples = draws(2000 * 4, "coverage").reshape(2000, 4)
    intervals = [mean_interval(sample.tolist()).interval for sample in samples]
    covered = np.mean([low <= 20.0 <= high for low, high in intervals])
    # Four standard errors of a share of 0.95 in 2000 samples.
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_paired_difference_equals_scipys_paired_test() -> None:
    first = draws(12)
    second = first - 0.5 + 0.1 * draws(12, "noise")
    result = paired_difference(first.tolist(), second.tolist())
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert result.mean == pytest.approx((first - second).mean(), rel=1e-12)
    assert result.interval == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_unusable_lists_are_refused() -> None:
    with pytest.raises(DataError, match="no values"):
        mean_interval([])
    with pytest.raises(DataError, match="NaN or infinite"):
        mean_interval([1.0, math.inf])
    with pytest.raises(DataError, match="2 values against 1"):
        paired_difference([1.0, 2.0], [1.0])
