"""One DICOM image as bytes, as a viewer would show it, and a pseudonym of its patient."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.boundary import IMAGE_BYTES, check_pixels, large_in_turn, open_plain, reading
from shadow_defense.data.codestream import check_compressed
from shadow_defense.data.dicom_grey import grey_to_bytes
from shadow_defense.errors import DataError, shown

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

DICOM_SUFFIX = ".dcm"
GREY = ("MONOCHROME1", "MONOCHROME2")
HINT = "replace or decompress the file"


@dataclass(frozen=True)
class DicomImage:
    """The displayed image, 0 to 255, and a pseudonym of its patient.

    Attributes:
        patient: the first 16 hexadecimal digits of SHA-256 of PatientID, or None where the header has none. It
            keeps a patient's images together; since PatientIDs can be tried one by one, it is no anonymisation.
    """

    pixels: UInt8[Tensor, "1 c h w"]
    patient: str | None


def read_dicom(path: Path, grey_range: tuple[float, float] | None = None) -> DicomImage:
    """Read one single-frame DICOM image; its grey values go the way of :func:`grey_to_bytes`.

    Args:
        grey_range: the grey values, after the rescale (HU in CT), that become black and white, in place of the window
            or lookup table of the header.

    Raises:
        DataError: naming the file, when it is no DICOM image, multi-frame, larger than :data:`IMAGE_PIXELS`, compressed
            in a way that no installed plugin decodes or that claims more than its header, or of a photometric
            interpretation other than MONOCHROME1, MONOCHROME2, RGB, YBR.
    """
    with reading("the DICOM image", path, HINT):
        header = _header(path)
        _check_header(header, path)
        with large_in_turn(int(header.Rows) * int(header.Columns)):
            pixels = _bytes_of(header, grey_range, path)
        return DicomImage(torch.from_numpy(pixels)[None], _pseudonym(header))


def _bytes_of(header: FileDataset, grey_range: tuple[float, float] | None, path: Path) -> UInt8[np.ndarray, "c h w"]:
    from pydicom.pixels import pixel_array

    stored = pixel_array(header)
    if header.PhotometricInterpretation in GREY:
        return grey_to_bytes(stored, header, grey_range, path)[None]
    if grey_range is not None:
        raise DataError(f"{shown(path)} is in colour: data.grey_range is for grey images; leave it out")
    if stored.dtype != np.uint8:
        raise DataError(f"{shown(path)}: colour of {stored.dtype}: expected 8 bits a channel; convert it")
    # A copy: what was decoded may be read-only.
    return np.array(stored.transpose(2, 0, 1), order="C")


def _header(path: Path) -> FileDataset:
    """The whole data set; the pixels as they are stored."""
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with open_plain(path, IMAGE_BYTES) as file:
        # Inflated as a whole before anything can be checked: a megabyte can hold a gigabyte.
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise DataError(f"{shown(path)} is deflated as a whole: inflate it, as with dcmconv +te")
        # From memory, where a length that is claimed and not there asks for none.
        return pydicom.dcmread(io.BytesIO(file.read()))


def _check_header(header: FileDataset, path: Path) -> None:
    """Refuse what is no single image of a known kind, before its pixels are decoded."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    name = shown(path)
    if "PixelData" not in header:
        raise DataError(f"{name} holds no pixels: give a DICOM image")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"{name} holds {frames} frames: give one image a file")
    photometric, samples = str(header.get("PhotometricInterpretation", "")), int(header.SamplesPerPixel)
    if photometric not in GREY and photometric != "RGB" and not photometric.startswith("YBR"):
        raise DataError(
            f"{name}: photometric interpretation '{shown(photometric, 40)}': expected {', '.join(GREY)}, RGB or YBR; "
            "convert it"
        )
    if samples != (1 if photometric in GREY else 3):
        raise DataError(f"{name}: {photometric} with {samples} samples a pixel: expected 1 for grey, 3 for colour")
    rows, columns = int(header.Rows), int(header.Columns)
    check_pixels(columns, rows, path)
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        frame = get_frame(header.PixelData, 0, number_of_frames=1)
        check_compressed(frame, columns, rows, samples, path)


def _pseudonym(header: Any) -> str | None:
    patient = str(header.get("PatientID") or "").strip()
    return hashlib.sha256(patient.encode(errors="surrogateescape")).hexdigest()[:16] if patient else None
