"""Numba's compiler with the settings that all compiled loops here share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

# Not all of fast maths: NaN and infinity must come through, so that a diverged training is seen.
FAST_MATHS = {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use and keep the result on disk, where there is a place for it.

    Where there is none (an installation that only another user may write, no home folder), every process compiles
    anew, in about 20 seconds; the environment variable NUMBA_CACHE_DIR names a place.
    """
    try:
        kept: Callable[..., Any] = njit(nogil=True, cache=True, fastmath=FAST_MATHS)(function)
    except RuntimeError:
        kept = njit(nogil=True, fastmath=FAST_MATHS)(function)
    return kept
