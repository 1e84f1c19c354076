"""Gaussian privacy against the integral that defines it, published numbers, and Opacus."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from shadow_defense.defenses.gaussian_mechanism import analytic_sigma, classic_sigma, gaussian_delta, gaussian_epsilon


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
def test_delta_is_the_divergence_of_two_gaussians(mu: float, epsilon: float) -> None:
    """By definition the integral of the positive part of p - e^epsilon q, with p = N(mu, 1) and q = N(0, 1)."""
    crossing = mu / 2 + epsilon / mu
    integral, _ = integrate.quad(
        lambda x: stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x), crossing, crossing + 30
    )
    assert gaussian_delta(mu, epsilon) == pytest.approx(integral, rel=1e-7)


def test_known_standard_deviations() -> None:
    assert classic_sigma(1.0, 1.0, 1e-5) == pytest.approx(4.8448053, abs=1e-7)
    assert classic_sigma(1.0, 10.0, 1e-5) == pytest.approx(0.4844805, abs=1e-7)
    assert classic_sigma(3.0, 1.0, 1e-5) == pytest.approx(3 * 4.8448053, abs=1e-6)
    assert analytic_sigma(1.0, 1.0, 1e-5) == pytest.approx(3.730632, abs=1e-6)


@given(epsilon=st.floats(1e-3, 1e4), exponent=st.floats(-12, -0.5), sensitivity=st.floats(1e-3, 1e3))
def test_epsilon_and_sigma_are_inverse(epsilon: float, exponent: float, sensitivity: float) -> None:
    delta = 10**exponent
    sigma = analytic_sigma(sensitivity, epsilon, delta)
    assert gaussian_epsilon(sensitivity / sigma, delta) == pytest.approx(epsilon, rel=1e-4, abs=1e-6)
    if epsilon <= 1:
        assert sigma <= classic_sigma(sensitivity, epsilon, delta)


def test_the_ends() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0
    # Total variation 2 Phi(mu / 2) - 1 below delta: private without any epsilon.
    assert gaussian_epsilon(1e-6, 1e-5) == 0
    assert math.isfinite(gaussian_epsilon(1e4, 1e-5))


def test_composition_is_below_what_opacus_bounds() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    for noise, steps in ((1.0, 1), (2.0, 30), (5.0, 400)):
        accountant = accountants.RDPAccountant()
        accountant.history = [(noise, 1.0, steps)]
        bound = accountant.get_epsilon(1e-5)
        exact = gaussian_epsilon(math.sqrt(steps) / noise, 1e-5)
        assert 0.8 * bound < exact < bound
