"""DICOM images written here and read back: windows against pydicom and by hand, inversion, patients, refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_rescale, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, SecondaryCaptureImageStorage, generate_uid

from shadow_defense.data.dicom_grey import window
from shadow_defense.data.dicom_image import read_dicom
from shadow_defense.data.image_folder import read_dicom_folder
from shadow_defense.data.manifest import read_manifest
from shadow_defense.errors import DataError


def write(path: Path, pixels: np.ndarray, **elements: Any) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        data.PlanarConfiguration = 0
    data.Rows, data.Columns = pixels.shape[:2]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


WINDOW: dict[str, Any] = {"WindowCenter": "1000", "WindowWidth": "4096"}
RAMP = np.arange(-1024, 3072, 16, dtype=np.int16).reshape(16, 16)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_rescale_and_window_agree_with_pydicom(tmp_path: Path, function: str) -> None:
    path = write(
        tmp_path / "a.dcm",
        RAMP,
        RescaleSlope="2",
        RescaleIntercept="-100",
        WindowCenter=["300", "1"],
        WindowWidth=["1500", "2"],
        VOILUTFunction=function,
    )
    header = pydicom.dcmread(path)
    # pydicom spreads the window over the rescaled range of the stored bits: -32768 * 2 - 100 to 32767 * 2 - 100.
    low, high = -32768 * 2 - 100, 32767 * 2 - 100
    reference = (apply_windowing(apply_rescale(header.pixel_array, header), header) - low) / (high - low)
    ours = read_dicom(path).pixels[0, 0].numpy()
    assert np.abs(ours - reference * 255).max() <= 0.51
    assert ours.min() < 30 and ours.max() > 220


def test_window_by_hand() -> None:
    # DICOM PS3.3 C.11.2.1.2.1: centre 2048, width 4096: 0 to 0 and 4095 to the top; width 1 is a threshold.
    values = np.array([[0.0, 4095.0, 2047.5]])
    assert window(values, 2048.0, 4096.0).tolist() == [[0.0, 1.0, 0.5]]
    assert window(np.array([[9.4, 9.6]]), 10.0, 1.0).tolist() == [[0.0, 1.0]]


def test_without_a_window_the_stored_bits_count(tmp_path: Path) -> None:
    pixels = np.array([[0, 1000, 2048, 4095]], dtype=np.uint16)
    path = write(tmp_path / "a.dcm", pixels, BitsStored=12)
    assert read_dicom(path).pixels.flatten().tolist() == [0, 62, 128, 255]
    inverted = write(tmp_path / "b.dcm", pixels, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert read_dicom(inverted).pixels.flatten().tolist() == [255, 193, 127, 0]


def test_lookup_table(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 8])
    table.add_new("LUTData", "US", [0, 10, 200, 255])
    path = write(tmp_path / "a.dcm", np.array([[0, 1, 2, 3]], np.uint8), VOILUTSequence=Sequence([table]))
    assert read_dicom(path).pixels.flatten().tolist() == [0, 10, 200, 255]


def test_colour_comes_back_to_the_byte(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    assert np.array_equal(read_dicom(write(tmp_path / "a.dcm", colour)).pixels[0].numpy(), colour.transpose(2, 0, 1))


def test_patient_is_a_hash_and_never_a_name(tmp_path: Path) -> None:
    image = read_dicom(write(tmp_path / "a.dcm", RAMP, PatientID=" 1234 ", PatientName="Doe^Jane", **WINDOW))
    assert image.patient == hashlib.sha256(b"1234").hexdigest()[:16]
    assert read_dicom(write(tmp_path / "b.dcm", RAMP, PatientName="Doe^Jane", **WINDOW)).patient is None


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"NumberOfFrames": "2", "Rows": 8}, "holds 2 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation 'PALETTE COLOR'"),
        ({"Rows": 400}, "cannot read the DICOM image"),
        ({"WindowCenter": "1", "WindowWidth": "9", "VOILUTFunction": "CUBIC"}, "'CUBIC' is none of LINEAR"),
    ],
)
def test_refusals_name_the_file(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.dcm", RAMP, **elements)
    with pytest.raises(DataError, match=rf"a\.dcm.*{message}|{message}.*a\.dcm") as caught:
        read_dicom(path)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("not DICOM")
    whole = write(tmp_path / "whole.dcm", RAMP).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) - 100])
    header = pydicom.dcmread(tmp_path / "whole.dcm")
    del header.PixelData
    header.save_as(tmp_path / "report.dcm")
    header.PixelData = pydicom.encaps.encapsulate([b"\x00" * 20])
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    header.save_as(tmp_path / "compressed.dcm")
    for name in ("text", "cut", "report", "compressed", "nowhere"):
        with pytest.raises(DataError, match=rf"{name}\.dcm") as caught:
            read_dicom(tmp_path / f"{name}.dcm")
        assert "\n" not in str(caught.value)


def test_folder_and_manifest_group_by_patient(tmp_path: Path) -> None:
    for index in range(4):
        write(
            tmp_path / "set" / ("fine", "sick")[index % 2] / f"{index}.dcm",
            np.full((8, 12), 60 * index, np.uint8),
            PatientID=f"p{index // 2}",
        )
    parts = read_dicom_folder(path=tmp_path / "set", image_size=8, channels=1)
    assert parts.train.sample_ids == ("fine/0.dcm", "fine/2.dcm", "sick/1.dcm", "sick/3.dcm")
    assert parts.train.images[:, 0, 0, 0].tolist() == [0, 120, 60, 180]
    groups = parts.train.groups
    assert groups[0] == groups[2] and groups[1] == groups[3] and groups[0] != groups[1]
    (tmp_path / "set" / "list.csv").write_text("path,label,patient\nfine/0.dcm,0,\nsick/1.dcm,1,\nsick/3.dcm,1,Q\n")
    listed = read_manifest(path=tmp_path / "set" / "list.csv", image_size=8, channels=None)
    assert listed.train.groups == (groups[0], groups[0], "Q")
