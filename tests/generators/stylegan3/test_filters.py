"""The low-pass filters, against SciPy's designs and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import j1

from shadow_defense.generators.stylegan3.filters import kaiser_beta, low_pass, separable_terms
from shadow_defense.generators.stylegan3.schedule import plan_layers

RADIAL = [
    plan
    for size in (32, 256)
    for plan in plan_layers(size, 3, channel_base=256, channel_max=8, kernel=1, radial=True)
    if plan.radial
]


@given(taps=st.integers(2, 64), width=st.floats(1e-3, 2.0))
def test_kaiser_beta(taps: int, width: float) -> None:
    expected = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, width))
    assert kaiser_beta(taps, width) == pytest.approx(expected, rel=1e-12)


def test_kaiser_beta_meets_all_three_cases() -> None:
    attenuations = [scipy.signal.kaiser_atten(12, width) for width in (0.01, 0.3, 1.0)]
    assert attenuations[0] < 21 < attenuations[1] < 50 < attenuations[2]
    assert kaiser_beta(12, 0.01) == 0
    for width, attenuation in zip((0.01, 0.3, 1.0), attenuations, strict=True):
        assert kaiser_beta(12, width) == pytest.approx(scipy.signal.kaiser_beta(attenuation))


@given(factor=st.sampled_from([2, 4]), cutoff=st.floats(0.05, 0.45), width=st.floats(0.02, 0.9))
def test_separable_filters_are_kaiser_windowed_sincs(factor: int, cutoff: float, width: float) -> None:
    """The specification's closed form, which is also SciPy's; frequencies as shares of a rate of 64."""
    taps = 6 * factor
    ours = low_pass(taps, cutoff * 64, width * 64, 64.0)
    assert ours is not None and ours.dtype == torch.float32
    position = np.arange(taps) - (taps - 1) / 2
    closed = np.sinc(2 * cutoff * position) * np.kaiser(taps, kaiser_beta(taps, 2 * width))
    np.testing.assert_allclose(ours, closed / closed.sum(), atol=1e-6)
    np.testing.assert_allclose(ours, scipy.signal.firwin(taps, cutoff * 64, width=width * 64, fs=64), atol=1e-6)


def test_separable_filters_pass_the_band_and_stop_what_lies_beyond() -> None:
    """Gain over 0.99 well inside the band, below -45 dB beyond the transition."""
    plan = plan_layers(32, 1, channel_base=256, channel_max=8, kernel=3, radial=False)[0]
    taps = low_pass(plan.down_taps, plan.writes.cutoff, 2 * plan.writes.half_width, float(plan.inner_rate))
    frequencies, response = scipy.signal.freqz(taps, fs=plan.inner_rate, worN=512)
    stop = plan.writes.cutoff + plan.writes.half_width
    assert abs(response[0]) == pytest.approx(1, abs=1e-6)
    assert np.abs(response[frequencies > 1.1 * stop]).max() < 10 ** (-45 / 20)


@pytest.mark.parametrize("plan", RADIAL, ids=lambda plan: plan.name)
def test_radial_filters(plan) -> None:  # type: ignore[no-untyped-def]
    kernel = low_pass(
        plan.down_taps, plan.writes.cutoff, 2 * plan.writes.half_width, float(plan.inner_rate), radial=True
    )
    assert kernel is not None and kernel.shape == (12, 12)
    assert float(kernel.double().sum()) == pytest.approx(1, abs=1e-6)
    for other in (kernel.T, kernel.flip(0), kernel.flip(1)):
        torch.testing.assert_close(kernel, other, rtol=0, atol=1e-8)
    # The jinc, at one place by hand: row 2, column 7 of a grid whose middle is (5.5, 5.5).
    window = np.kaiser(12, kaiser_beta(12, 4 * plan.writes.half_width / plan.inner_rate))

    def jinc(row: int, column: int) -> float:
        radius = math.hypot(row - 5.5, column - 5.5) / plan.inner_rate
        return j1(2 * math.pi * plan.writes.cutoff * radius) / (math.pi * radius) * window[row] * window[column]

    assert float(kernel[2, 7] / kernel[5, 5]) == pytest.approx(jinc(2, 7) / jinc(5, 5), abs=1e-6)


@pytest.mark.parametrize("plan", RADIAL, ids=lambda plan: plan.name)
def test_separable_terms_rebuild_a_radial_filter(plan) -> None:  # type: ignore[no-untyped-def]
    kernel = low_pass(
        plan.down_taps, plan.writes.cutoff, 2 * plan.writes.half_width, float(plan.inner_rate), radial=True
    )
    assert kernel is not None
    rows, columns = separable_terms(kernel).double()
    assert len(rows) <= 6  # Twelve taps, mirrored: fewer are smaller terms left out.
    torch.testing.assert_close(rows.T @ columns, kernel.double(), rtol=0, atol=1e-6 * float(kernel.max()))


def test_a_separable_filter_is_its_own_term() -> None:
    taps = low_pass(24, 4.0, 8.0, 64.0)
    assert taps is not None
    rows, columns = separable_terms(taps)
    torch.testing.assert_close(rows.T @ columns, torch.outer(taps, taps), rtol=0, atol=0)


def test_one_tap_is_the_identity() -> None:
    assert low_pass(1, 16.0, 7.0, 32.0) is None
