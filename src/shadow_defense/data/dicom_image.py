"""One DICOM image as bytes: rescale, window, photometric interpretation (DICOM PS3.3, C.7.6.3 and C.11)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.errors import DataError

DICOM_SUFFIX = ".dcm"
GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class DicomImage:
    """The displayed image, 0 to 255, and a pseudonym of its patient.

    Attributes:
        patient: the first 16 hexadecimal digits of SHA-256 of PatientID, or None where the header has none. It
            keeps a patient's images together; since PatientIDs can be tried one by one, it is no anonymisation.
    """

    pixels: UInt8[Tensor, "1 c h w"]
    patient: str | None


def read_dicom(path: Path) -> DicomImage:
    """Read one single-frame DICOM image as a viewer would show it.

    Grey values go through rescale slope and intercept, then through the VOI LUT or the first window; without
    either, the full range of the stored bits becomes 0 to 255. MONOCHROME1 is inverted.

    Raises:
        DataError: naming the file, when it is no DICOM image, multi-frame, compressed in a way that no installed
            plugin decodes, or of a photometric interpretation other than MONOCHROME1, MONOCHROME2, RGB, YBR.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import pixel_array

    try:
        header = pydicom.dcmread(path)
        if "PixelData" not in header:
            raise DataError(f"{path} holds no pixels: give a DICOM image")
        frames = int(header.get("NumberOfFrames") or 1)
        if frames > 1:
            raise DataError(f"{path} holds {frames} frames: give one image a file")
        photometric = str(header.get("PhotometricInterpretation", ""))
        if photometric not in GREY and photometric != "RGB" and not photometric.startswith("YBR"):
            raise DataError(
                f"{path}: photometric interpretation '{photometric}': expected {', '.join(GREY)}, RGB or YBR"
            )
        stored = pixel_array(header)
        if photometric in GREY:
            unit = _displayed(stored.astype(np.float64), header)
            grey = 1 - unit if photometric == "MONOCHROME1" else unit
            pixels = np.rint(grey * 255).astype(np.uint8)[None, None]
        else:
            if stored.dtype != np.uint8:
                raise DataError(f"{path}: colour of {stored.dtype}: expected 8 bits a channel")
            pixels = stored.transpose(2, 0, 1)[None]
    # pydicom raises whatever a damaged header leads to, and RuntimeError where no plugin decodes the compression.
    except (
        InvalidDicomError,
        OSError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        RuntimeError,
        NotImplementedError,
        EOFError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot read the DICOM image {path}: {reason}; replace or decompress the file") from error
    return DicomImage(torch.from_numpy(np.ascontiguousarray(pixels)), _pseudonym(header))


def _pseudonym(header: Any) -> str | None:
    patient = str(header.get("PatientID") or "").strip()
    return hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else None


def _displayed(stored: Float[np.ndarray, "h w"], header: Any) -> Float[np.ndarray, "h w"]:
    """Stored values to brightness in [0, 1]."""
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    values = stored * slope + intercept
    if "VOILUTSequence" in header:
        from pydicom.pixels import apply_voi

        table = header.VOILUTSequence[0]
        return apply_voi(np.rint(values).astype(np.int64), header).astype(np.float64) / (
            2 ** int(table.LUTDescriptor[2]) - 1
        )
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        function = str(header.get("VOILUTFunction") or "LINEAR")
        return window(values, _first(header.WindowCenter), _first(header.WindowWidth), function)
    bits = int(header.BitsStored)
    lowest = -(2 ** (bits - 1)) if int(header.PixelRepresentation) else 0
    ends = np.array([lowest, lowest + 2**bits - 1]) * slope + intercept
    return np.clip((values - ends.min()) / (ends.max() - ends.min()), 0, 1)


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


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
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function != "LINEAR":
        raise ValueError(f"VOI LUT function '{function}' is none of LINEAR, LINEAR_EXACT, SIGMOID")
    # A width of 1 is a threshold in the standard; the smallest positive span gives the same.
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)
