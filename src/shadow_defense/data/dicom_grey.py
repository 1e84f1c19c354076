"""The grey pipeline of DICOM: modality, values of interest, presentation (PS3.3, C.11.1, C.11.2, C.11.6)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from shadow_defense.data.grey_levels import range_to_bytes, refuse_lost
from shadow_defense.errors import DataError, shown


def grey_to_bytes(
    stored: Shaped[np.ndarray, "h w"], header: Any, grey_range: tuple[float, float] | None, path: Path
) -> UInt8[np.ndarray, "h w"]:
    """Stored values to what a viewer shows, 0 to 255.

    The Modality LUT, or slope and intercept (1 and 0 where they are empty), then ``grey_range``, the VOI LUT or the
    first window; without any, the full range of the stored bits becomes 0 to 255. MONOCHROME1 and a
    PresentationLUTShape INVERSE each say that low values are white; together they say it once.

    Raises:
        DataError: naming the file, for a slope of 0, a Presentation LUT Sequence, or when nothing names a range and few
            grey levels would be left of many.
    """
    if header.get("PresentationLUTSequence"):
        raise DataError(f"{shown(path)} has a Presentation LUT Sequence: expected a shape; apply it and save the image")
    values, low, high = _modality(stored, header, path)
    if grey_range is not None:
        pixels = range_to_bytes(values, *grey_range, shown(path))
    elif header.get("VOILUTSequence"):
        pixels = _through_table(values, header, path)
    elif (chosen := _first_window(header)) is not None:
        function = str(header.get("VOILUTFunction") or "LINEAR")
        pixels = np.rint(window(values, *chosen, function) * 255).astype(np.uint8)
    else:
        pixels = range_to_bytes(values, low, high, shown(path))
        refuse_lost(pixels, values, path)
    shape = str(header.get("PresentationLUTShape") or "").strip().upper()
    return 255 - pixels if shape == "INVERSE" or header.PhotometricInterpretation == "MONOCHROME1" else pixels


def _modality(
    stored: Shaped[np.ndarray, "h w"], header: Any, path: Path
) -> tuple[Float[np.ndarray, "h w"], float, float]:
    """The values in the unit of the modality, and the lowest and highest that their bits can hold."""
    if header.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        bits = int(header.ModalityLUTSequence[0].LUTDescriptor[2])
        return apply_modality_lut(stored, header).astype(np.float64), 0.0, float(2**bits - 1)
    slope, intercept = _number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise DataError(
            f"{shown(path)}: rescale slope {slope:g} and intercept {intercept:g}: expected finite numbers, the slope "
            "not 0; correct the header"
        )
    bits = int(header.BitsStored)
    lowest = -(2 ** (bits - 1)) if int(header.PixelRepresentation) else 0
    ends = lowest * slope + intercept, (lowest + 2**bits - 1) * slope + intercept
    return stored.astype(np.float64) * slope + intercept, min(ends), max(ends)


def _through_table(values: Float[np.ndarray, "h w"], header: Any, path: Path) -> UInt8[np.ndarray, "h w"]:
    from pydicom.pixels import apply_voi

    bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
    shown_values = apply_voi(np.rint(values).astype(np.int64), header)
    return range_to_bytes(shown_values, 0.0, float(2**bits - 1), shown(path))


def _first_window(header: Any) -> tuple[float, float] | None:
    """Centre and width; None where the header has none that can be: a width of 0 stands for not known."""
    centre, width = _number(header, "WindowCenter", math.nan), _number(header, "WindowWidth", math.nan)
    return (centre, width) if math.isfinite(centre) and math.isfinite(width) and width > 0 else None


def _number(header: Any, element: str, otherwise: float) -> float:
    value = header.get(element)
    if value is not None and hasattr(value, "__len__") and not isinstance(value, str):
        value = value[0] if len(value) else None
    return otherwise if value is None or value == "" else float(value)


def window(
    values: Float[np.ndarray, "h w"], centre: float, width: float, function: str = "LINEAR"
) -> Float[np.ndarray, "h w"]:
    """The VOI window of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, to [0, 1].

    LINEAR: ``(x - (c - 0.5)) / (w - 1) + 0.5``; LINEAR_EXACT: ``(x - c) / w + 0.5``; SIGMOID:
    ``1 / (1 + exp(-4 (x - c) / w))``.

    >>> window(np.array([[-160.0, 40.0, 239.0]]), 40.0, 400.0).round(3).tolist()
    [[0.0, 0.501, 1.0]]
    """
    if function == "SIGMOID":
        from scipy.special import expit

        return expit(4 * (values - centre) / width)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function != "LINEAR":
        raise ValueError(f"VOI LUT function '{function}' is none of LINEAR, LINEAR_EXACT, SIGMOID")
    # A width of 1 is a threshold in the standard; the smallest positive span gives the same.
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)
