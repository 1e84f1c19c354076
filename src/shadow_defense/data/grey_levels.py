"""From stored grey values to bytes, and what is lost on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from shadow_defense.errors import DataError, shown

# Stored values that end in fewer levels, though they were at least LOST times as many, are not that image any more.
FEW_LEVELS = 32
LOST = 4


def unit_to_bytes(images: Float[np.ndarray, " n *pixel"], origin: str) -> UInt8[np.ndarray, " n *pixel"]:
    """Floats in [0, 1] to bytes. Raises :class:`DataError` naming the first image that holds anything else."""
    converted = np.empty(images.shape, np.uint8)
    # In chunks, so that the working memory does not grow with the data set.
    for start in range(0, len(images), 64):
        chunk = images[start : start + 64]
        # NaN fails both comparisons, so one test finds everything that is not a brightness.
        good = ((chunk >= 0) & (chunk <= 1)).reshape(len(chunk), -1).all(axis=1)
        if not good.all():
            index = int(np.flatnonzero(~good)[0])
            fault = "values outside [0, 1]" if np.isfinite(chunk[index]).all() else "NaN or infinite values"
            raise DataError(
                f"{origin}, image {start + index}: {fault}; expected bytes, or floats in [0, 1]: rescale or repair it"
            )
        converted[start : start + 64] = (chunk * 255).round()
    return converted


def range_to_bytes(
    values: Shaped[np.ndarray, "*pixel"], low: float, high: float, origin: str
) -> UInt8[np.ndarray, "*pixel"]:
    """``low`` to 0 and ``high`` to 255, linearly; what lies beyond is cut off.

    Raises:
        DataError: where a value is no number.

    >>> range_to_bytes(np.array([-5, 0, 2048, 4095, 9000]), 0.0, 4095.0, "here").tolist()
    [0, 0, 128, 255, 255]
    """
    scaled = values.astype(np.float64)
    if np.isnan(scaled).any():
        raise DataError(f"{origin} holds NaN: repair or remove it")
    np.clip(scaled, low, high, out=scaled)
    scaled -= low
    scaled *= 255 / (high - low)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def count_levels(pixels: UInt8[np.ndarray, "*pixel"]) -> int:
    """How many of the 256 levels occur.

    >>> count_levels(np.array([[0, 7], [7, 255]], dtype=np.uint8))
    3
    """
    seen = np.zeros(256, bool)
    seen[pixels] = True
    return int(seen.sum())


def refuse_lost(pixels: UInt8[np.ndarray, "*pixel"], stored: Shaped[np.ndarray, "*pixel"], path: Any) -> None:
    """Refuse an image whose many stored values have become few grey levels, where nobody said which range counts.

    12 bits kept in a file of 16 are 17 levels of 256, and a CT without its window as few.

    Raises:
        DataError: with the lowest and highest stored value, and the setting that says which range is meant.
    """
    kept = count_levels(pixels)
    if kept >= FEW_LEVELS:
        return
    sample = stored.ravel()[:: max(1, stored.size // 2**18)]
    if len(np.unique(sample)) >= LOST * kept:
        raise DataError(
            f"{shown(path)}: {kept} of 256 grey levels would be left of its values {stored.min():g} to "
            f"{stored.max():g}: set data.grey_range to the values that are black and white, such as [0, 4095] for 12 "
            "bits (in DICOM after the rescale, as in [-160, 240] HU)"
        )
