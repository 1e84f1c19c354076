"""Differences by bootstrap within seeds, and Holm's correction, against outside references."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shadow_defense.errors import DataError
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.contrasts import contrast, holm, images_to_settle, resampled_means, within_seeds
from shadow_defense.metrics.intervals import share_interval


class TestWithinSeeds:
    def test_what_seeds_differ_by_does_not_widen_the_interval(self) -> None:
        """Two seeds far apart, whose images hardly vary: over all images together the interval is wide."""
        rng = np.random.default_rng(0)
        near = {0: rng.normal(0, 0.1, 40).tolist(), 1: rng.normal(10, 0.1, 40).tolist()}
        together = {0: near[0] + near[1]}
        (low, high), (wide_low, wide_high) = within_seeds(near).interval, within_seeds(together).interval
        assert high - low < 0.1 < 1 < wide_high - wide_low

    def test_the_spread_is_that_of_a_stratified_mean(self) -> None:
        rng = np.random.default_rng(1)
        values = {0: rng.normal(0, 1, 50).tolist(), 1: rng.normal(3, 2, 20).tolist()}
        expected = math.sqrt(sum(len(each) * np.var(each) for each in values.values())) / 70
        assert float(resampled_means(values, 0).std()) == pytest.approx(expected, rel=0.06)

    def test_one_image_has_no_interval_and_none_is_refused(self) -> None:
        assert within_seeds({0: [2.0]}) == Estimate(2.0, None, 1)
        with pytest.raises(DataError, match="no values"):
            within_seeds({0: []})


class TestContrast:
    def test_a_clear_difference_has_the_least_p_and_no_difference_a_large_one(self) -> None:
        values = [1.0, 1.2, 0.9, 1.1, 1.0, 0.8]
        clear = contrast({0: values[:4], 1: values[4:]})
        assert clear.p == pytest.approx(2 / 2001) and clear.effect == pytest.approx(1.0 / np.std(values, ddof=1))
        assert contrast({0: [1.0, -1.0, 0.5, -0.5]}).p > 0.8

    def test_differences_that_do_not_vary_have_no_effect_size(self) -> None:
        assert contrast({0: [0.0, 0.0]}).effect is None

    def test_p_is_near_the_t_test(self) -> None:
        from scipy.stats import ttest_1samp

        values = np.random.default_rng(2).normal(0.3, 1, 60)
        assert contrast({0: values.tolist()}).p == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.02)


def test_holm_is_that_of_statsmodels_by_hand() -> None:
    """Holm 1979: 4 x 0.005, 3 x 0.011, 2 x 0.02, 1 x 0.04, never descending."""
    adjusted = holm({"a": 0.04, "b": 0.005, "c": 0.02, "d": 0.011})
    assert adjusted == pytest.approx({"b": 0.02, "d": 0.033, "c": 0.04, "a": 0.04}) and list(adjusted) == list("abcd")


def test_four_times_the_images_halve_the_interval() -> None:
    assert images_to_settle(Estimate(3.0, (1.0, 5.0), 25), 2.0) == 100
    # A share's interval is longer above: 8 found of 300 do not settle a bar of 5 %.
    assert images_to_settle(Estimate(0.027, (0.012, 0.052), 300), 0.05) == 355
    assert images_to_settle(Estimate(2.0, (1.0, 3.0), 25), 2.0) is None
    assert images_to_settle(Estimate(2.0, None, 1), 1.0) is None


def test_shares_are_those_of_scipy() -> None:
    from scipy.stats import binomtest

    for hits in (0, 3, 50):
        found = share_interval([1.0] * hits + [0.0] * (50 - hits))
        outside = binomtest(hits, 50).proportion_ci(method="exact")
        assert found.mean == hits / 50 and found.interval == pytest.approx((outside.low, outside.high))
