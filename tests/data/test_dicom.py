"""DICOM images written here and read back: windows against pydicom and by hand, inversion, patients, refusals."""

from __future__ import annotations

import hashlib
import io
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_rescale, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)

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


def looks_like(pixels: Any) -> float:
    """Correlation with the stored ramp: 1 shown as stored, -1 inverted."""
    return float(np.corrcoef(pixels.flatten().numpy().astype(float), RAMP.flatten().astype(float))[0, 1])


def table_of(kind: str, values: np.ndarray, first: int) -> Sequence:
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, 16])
    table.add_new("LUTData", "US", values.tolist())
    if kind == "modality":
        table.ModalityLUTType = "US"
    return Sequence([table])


def test_modality_table_agrees_with_pydicom(tmp_path: Path) -> None:
    values = np.linspace(65535, 0, 4096).astype(np.uint16)
    path = write(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=table_of("modality", values, -1024))
    header = pydicom.dcmread(path)
    reference = apply_modality_lut(header.pixel_array, header) / 65535 * 255
    ours = read_dicom(path).pixels[0, 0].numpy()
    assert np.abs(ours - reference).max() <= 0.51 and ours[0, 0] == 255 and ours.min() == 1


def test_the_window_comes_after_the_modality_table(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.uint16)
    path = write(
        tmp_path / "a.dcm",
        RAMP,
        ModalityLUTSequence=table_of("modality", values, -1024),
        WindowCenter="2048",
        WindowWidth="4096",
    )
    assert np.abs(read_dicom(path).pixels[0, 0].numpy() - (RAMP + 1024) / 4095 * 255).max() <= 0.51


@pytest.mark.parametrize(
    ("photometric", "shape", "sign"),
    [
        ("MONOCHROME2", "IDENTITY", 1),
        ("MONOCHROME2", "INVERSE", -1),
        ("MONOCHROME1", None, -1),
        # The DX objects of the standard carry both, for one inversion.
        ("MONOCHROME1", "INVERSE", -1),
    ],
)
def test_white_is_low_once(tmp_path: Path, photometric: str, shape: str | None, sign: int) -> None:
    elements = {} if shape is None else {"PresentationLUTShape": shape}
    path = write(tmp_path / "a.dcm", RAMP, PhotometricInterpretation=photometric, **elements, **WINDOW)
    assert looks_like(read_dicom(path).pixels) * sign > 0.99


def test_empty_elements_say_nothing(tmp_path: Path) -> None:
    plain = read_dicom(write(tmp_path / "a.dcm", RAMP, **WINDOW)).pixels
    empty = write(
        tmp_path / "b.dcm", RAMP, VOILUTSequence=Sequence([]), RescaleSlope=None, RescaleIntercept=None, **WINDOW
    )
    assert torch.equal(read_dicom(empty).pixels, plain)


@pytest.mark.parametrize(
    "elements", [{}, {"WindowCenter": "0", "WindowWidth": "0"}, {"WindowCenter": "", "WindowWidth": ""}]
)
def test_a_ct_without_a_window_needs_its_range(tmp_path: Path, elements: dict[str, Any]) -> None:
    path = write(tmp_path / "a.dcm", RAMP, RescaleSlope="1", RescaleIntercept="-1024", **elements)
    with pytest.raises(DataError, match=r"a\.dcm: 16 of 256 grey levels.* -2048 to 2032: set data\.grey_range"):
        read_dicom(path)
    pixels = read_dicom(path, (-160.0, 240.0)).pixels[0, 0].numpy()
    reference = np.clip((RAMP.astype(float) - 1024 + 160) / 400, 0, 1) * 255
    assert np.abs(pixels - reference).max() <= 0.51


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"RescaleSlope": "0", "RescaleIntercept": "3"}, "rescale slope 0 and intercept 3"),
        ({"SamplesPerPixel": 3}, "MONOCHROME2 with 3 samples a pixel"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels: expected 1 to"),
        ({"Rows": 0}, "16 x 0 pixels"),
        ({"PresentationLUTSequence": Sequence([Dataset()])}, "Presentation LUT Sequence"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.dcm.*{message}"):
        read_dicom(write(tmp_path / "a.dcm", RAMP, **elements))


def test_a_deflated_file_is_not_inflated(tmp_path: Path) -> None:
    header = pydicom.dcmread(write(tmp_path / "a.dcm", RAMP, **WINDOW))
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(tmp_path / "b.dcm")
    with pytest.raises(DataError, match=r"b\.dcm is deflated as a whole: inflate it"):
        read_dicom(tmp_path / "b.dcm")


def compressed(path: Path, frame: bytes, syntax: str, side: int = 64) -> Path:
    header = pydicom.dcmread(write(path, np.zeros((side, side), np.uint8)))
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = pydicom.encaps.encapsulate([frame])
    header["PixelData"].VR = "OB"
    header.save_as(path)
    return path


def jpeg2000(**options: Any) -> bytearray:
    stream = io.BytesIO()
    ramp = np.arange(4096).reshape(64, 64) // 16
    Image.fromarray(ramp.astype(np.uint8)).save(stream, "JPEG2000", no_jp2=True, **options)
    return bytearray(stream.getvalue())


@pytest.mark.parametrize("options", [{}, {"codeblock_size": (16, 16)}, {"tile_size": (32, 32)}, {"num_resolutions": 3}])
def test_jpeg_2000_comes_back_to_the_byte(tmp_path: Path, options: dict[str, Any]) -> None:
    pixels = read_dicom(compressed(tmp_path / "a.dcm", bytes(jpeg2000(**options)), JPEG2000Lossless)).pixels
    assert pixels.flatten().tolist() == [value // 16 for value in range(4096)]


def claiming(place: int, form: str, *values: int) -> bytes:
    stream = jpeg2000()
    struct.pack_into(form, stream, place, *values)
    return bytes(stream)


def with_precincts(exponent: int) -> bytes:
    stream = jpeg2000()
    levels = stream[CODING + 9]
    segment = stream[CODING : CODING + 14] + bytes([17 * exponent] * (levels + 1))
    segment[4] |= 1
    struct.pack_into(">H", segment, 2, len(segment) - 2)
    return bytes(stream[:CODING] + segment + stream[CODING + 14 :])


def with_segment(marker: int, place: int) -> bytes:
    stream = jpeg2000()
    return bytes(stream[:place] + struct.pack(">HHH", marker, 4, 0) + stream[place:])


CODING = jpeg2000().index(b"\xff\x52")
TILE = jpeg2000().index(b"\xff\x90")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (claiming(8, ">II", 60000, 60000), "60000 x 60000 pixels"),
        (claiming(8, ">II", 128, 64), "compressed pixels of 128 x 64, its header says 64 x 64"),
        (claiming(24, ">II", 1, 1), "tiles, expected at most 1024"),
        (claiming(40, ">H", 16384), "16384 components, its header says 1"),
        (claiming(CODING + 6, ">HBBBB", 65535, 0, 5, 0, 0), "65535 layers of small blocks"),
        (with_precincts(1), "precincts below 32 pixels"),
        (with_segment(0xFF5F, CODING), "a segment FF5F"),
        (with_segment(0xFF52, TILE + 12), "a segment FF52 in a tile"),
        (bytes(jpeg2000()[:60]), "cannot read the DICOM image"),
        (bytes(jpeg2000()[:TILE]) + b"\xff\x64\0\2" * 10**6, "more than 1000 segments"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 10**6, "more than 1000 segments"),
        (b"\x89PNG" + bytes(60), "no JPEG or JPEG 2000"),
    ],
)
def test_jpeg_2000_that_asks_for_more_than_its_pixels(tmp_path: Path, frame: bytes, message: str) -> None:
    path = compressed(tmp_path / "a.dcm", frame, JPEG2000Lossless)
    start = time.process_time()
    with pytest.raises(DataError, match=message) as caught:
        read_dicom(path)
    assert "a.dcm" in str(caught.value) and time.process_time() - start < 1


def test_a_jpeg_must_have_the_size_of_its_header(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (64, 64), 7).save(stream, "JPEG")
    path = compressed(tmp_path / "a.dcm", stream.getvalue(), JPEGBaseline8Bit)
    assert read_dicom(path).pixels.unique().tolist() == [7]
    compressed(path, stream.getvalue(), JPEGBaseline8Bit, side=32)
    with pytest.raises(DataError, match=r"a\.dcm: compressed pixels of 64 x 64, its header says 32 x 32"):
        read_dicom(path)
