"""Low-pass filters of the alias-free layers: Kaiser-windowed sinc, jinc for radial symmetry (docs/generators.md)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.signal import firwin
from scipy.special import j1
from torch import Tensor


def kaiser_beta(taps: int, width: float) -> float:
    """Kaiser's beta for a transition of ``width`` (as a share of the Nyquist rate) with ``taps`` taps.

    ``A = 2.285 (taps - 1) pi width + 7.95``; ``beta = 0.1102 (A - 8.7)`` above 50 dB,
    ``0.5842 (A - 21)^0.4 + 0.07886 (A - 21)`` above 21 dB, else 0.
    """
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def low_pass(
    taps: int, cutoff: float, width: float, rate: float, *, radial: bool = False
) -> Float[Tensor, " taps"] | Float[Tensor, "taps taps"] | None:
    """A filter of unit gain at frequency 0, or None for one tap, which is the identity.

    Separable filters are one-dimensional and meant for both axes; radial ones are
    ``J1(2 pi cutoff r) / (pi r)`` under the outer product of the Kaiser window with itself.

    Args:
        cutoff, width: pass-band edge and transition width, in cycles per image.
        rate: sampling rate at which the filter runs, in samples per image.
    """
    if taps == 1:
        return None
    if not radial:
        return torch.as_tensor(firwin(taps, cutoff, width=width, fs=rate), dtype=torch.float32)
    position = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(*np.meshgrid(position, position))
    window = np.kaiser(taps, kaiser_beta(taps, width / (rate / 2)))
    kernel = j1(2 * cutoff * (np.pi * radius)) / (np.pi * radius) * np.outer(window, window)
    return torch.as_tensor(kernel / kernel.sum(), dtype=torch.float32)


def separable_terms(kernel: Float[Tensor, "*shape"], tolerance: float = 1e-6) -> Float[Tensor, "2 rank taps"]:
    """Rows and columns with ``kernel = sum_r outer(rows_r, columns_r)``; one term for a one-dimensional filter.

    The radial filters are symmetric matrices, so their eigenvectors give the terms; those whose eigenvalue is below
    ``tolerance`` of the greatest are dropped (4 or 5 of 12 stay for the filters of configuration R).
    """
    if kernel.ndim == 1:
        return torch.stack([kernel, kernel])[:, None]
    values, vectors = torch.linalg.eigh(kernel.double())
    kept = values.abs() > tolerance * values.abs().max()
    columns = vectors[:, kept].T
    return torch.stack([columns * values[kept, None], columns]).to(kernel)
