"""The exact privacy of Gaussian noise: (epsilon, delta) of one release, of many, and the noise that reaches them.

A release of a vector whose neighbouring inputs differ by at most S (L2), with N(0, sigma^2) on every entry, is told by
mu = S / sigma alone (Balle and Wang 2018, arXiv:1805.06530, theorem 8; "mu-GDP" of Dong, Roth and Su 2019,
arXiv:1905.02383). k releases, each of which may depend on those before, are together one of mu * sqrt(k) (Dong et al.,
corollary 3.3): no bound, the exact composition.
"""

from __future__ import annotations

import math


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The least delta at ``epsilon``: Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu).

    Args:
        mu: sensitivity over standard deviation, greater than 0.
        epsilon: 0 or more.
    """
    # Here and below, since most defenses need none of it and every client's process reads this file.
    from scipy.special import log_ndtr, ndtr

    kept = ndtr(mu / 2 - epsilon / mu)
    # In logarithms, since e^epsilon overflows where the product is small.
    return float(kept - math.exp(min(epsilon + log_ndtr(-mu / 2 - epsilon / mu), 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon at ``delta`` in (0, 1) of a Gaussian release, or of several composed, with ``mu`` >= 0.

    >>> round(gaussian_epsilon(1 / 3.730632, 1e-5), 6)
    1.0
    """
    from scipy.optimize import brentq

    if mu == 0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    # What concentrated privacy proves (Bun and Steinke 2016, lemma 3.5) is never less.
    enough = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, enough, xtol=1e-12, rtol=1e-12))


def analytic_sigma(sensitivity: float, epsilon: float, delta: float) -> float:
    """The least standard deviation that makes one release (epsilon, delta)-private, for any epsilon > 0.

    >>> round(analytic_sigma(1.0, 1.0, 1e-5), 6)
    3.730632
    """
    from scipy.optimize import brentq

    most = 1.0
    while gaussian_delta(most, epsilon) < delta:
        most *= 2
    # mu grows with epsilon and delta; at the lower end the release says nearly nothing.
    least = most
    while gaussian_delta(least, epsilon) >= delta:
        least /= 2
    mu = brentq(lambda value: gaussian_delta(value, epsilon) - delta, least, most, xtol=1e-15, rtol=1e-12)
    return sensitivity / float(mu)


def classic_sigma(sensitivity: float, epsilon: float, delta: float) -> float:
    """sigma = S sqrt(2 ln(1.25 / delta)) / epsilon (docs/defenses.md); proved for epsilon <= 1 only.

    >>> round(classic_sigma(1.0, 1.0, 1e-5), 7)
    4.8448053
    """
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
