"""DICOM files: pydicom's bundled ones with other headers, claims, tables and transfer syntaxes."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import NUMBERS, TEXTS, change_bytes

LARGEST = 150_000
"""Bytes of a bundled file that is used: many inputs, not long ones."""

KEYWORDS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PlanarConfiguration", "NumberOfFrames", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "PatientID", "PresentationLUTShape", "PixelData",
    "PixelPaddingValue",
)  # fmt: skip

VALUES = (
    *NUMBERS, "", None, [], [1, 2], ["40", "x"], "MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR",
    "INVERSE", "SIGMOID", "LINEAR_EXACT", "1e400", "9" * 2000, "\\", "1\\2", *TEXTS[:40],
)  # fmt: skip

SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.5", "1.2.3.4", "",
)  # fmt: skip


@functools.cache
def bundled(pattern: str = "*.dcm") -> list[bytes]:
    """The small files that come with pydicom, of all its transfer syntaxes."""
    from pydicom import data

    folder = Path(data.__file__).parent / "test_files"
    files = sorted(path for path in folder.glob(pattern) if path.stat().st_size < LARGEST)
    return [path.read_bytes() for path in files]


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """One element in explicit little endian."""
    value += b" " * (len(value) % 2)
    if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return struct.pack("<HH2sHI", group, number, kind, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def plain(syntax: str, *elements: bytes) -> bytes:
    """A file of these elements after the header of the transfer syntax."""
    meta = element(2, 0x10, b"UI", syntax.encode())
    length = element(2, 0, b"UL", struct.pack("<I", len(meta)))
    body = b"".join(elements)
    if syntax.endswith(".1.99"):
        packer = zlib.compressobj(9, wbits=-15)
        body = packer.compress(body) + packer.flush()
    return bytes(128) + b"DICM" + length + meta + body


def _grey(rows: int, columns: int, pixels: bytes, frames: bytes = b"") -> list[bytes]:
    return [
        element(0x28, 2, b"US", struct.pack("<H", 1)),
        element(0x28, 4, b"CS", b"MONOCHROME2"),
        *([element(0x28, 8, b"IS", frames)] if frames else []),
        element(0x28, 0x10, b"US", struct.pack("<H", rows)),
        element(0x28, 0x11, b"US", struct.pack("<H", columns)),
        element(0x28, 0x100, b"US", struct.pack("<H", 8)),
        element(0x28, 0x101, b"US", struct.pack("<H", 8)),
        element(0x28, 0x102, b"US", struct.pack("<H", 7)),
        element(0x28, 0x103, b"US", struct.pack("<H", 0)),
        element(0x7FE0, 0x10, b"OW", pixels),
    ]


def _nested(depth: int) -> bytes:
    head = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    tail = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return head * depth + tail * depth


def codestream(side: int, levels: int, tile: int) -> bytes:
    """A JPEG 2000 header that claims a size, and next to no data."""
    size = struct.pack(">HHIIIIIIIIHBBB", 41, 0, side, side, 0, 0, tile, tile, 0, 0, 1, 7, 1, 1)
    coding = struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, levels, 4, 4, 0, 1)
    quantised = struct.pack(">HB", 3 + 3 * levels + 1, 0x40) + bytes([0x48] * (3 * levels + 1))
    tiles = b"".join(struct.pack(">HHHIBBH", 0xFF90, 10, number, 14, 0, 1, 0xFF93) for number in range(200))
    return b"\xff\x4f\xff\x51" + size + b"\xff\x52" + coding + b"\xff\x5c" + quantised + tiles + b"\xff\xd9"


def _encapsulated(frame: bytes) -> bytes:
    frame += b"\0" * (len(frame) % 2)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + items + end


def _made(random: np.random.Generator) -> tuple[bytes, str]:
    """A file written by hand whose claims no writer would write."""
    which = pick(
        random, ("nested", "deflated bomb", "claims", "frames", "jpeg 2000", "jpeg 2000", "odd length", "empty")
    )
    if which == "nested":
        return plain(SYNTAXES[1], _nested(pick(random, (10, 500, 5000, 60_000))), *_grey(8, 8, bytes(64))), which
    if which == "deflated bomb":
        return plain(SYNTAXES[2], *_grey(8, 8, bytes(pick(random, (64, 10**8))))), which
    if which == "claims":
        side = pick(random, (0, 1, 65535))
        return plain(pick(random, SYNTAXES[:4]), *_grey(side, side, bytes(64))), f"{which} {side}"
    if which == "frames":
        return plain(
            SYNTAXES[1], *_grey(8, 8, bytes(64), pick(random, (b"1000000000", b"9" * 4000, b"x", b"-3", b"1.5")))
        ), which
    if which == "jpeg 2000":
        side = pick(random, (64, 4096, 16_384, 60_000, 2**31))
        frame = codestream(side, pick(random, (0, 5, 32)), pick(random, (1, 8, 64, side)))
        rows = pick(random, (8, min(side, 65535)))
        return plain(SYNTAXES[8], *_grey(rows, rows, b"")[:-1], _encapsulated(frame)), f"{which} of side {side}"
    if which == "odd length":
        return plain(SYNTAXES[1], *_grey(8, 8, bytes(pick(random, (0, 1, 63, 65, 1000))))), which
    return plain(pick(random, SYNTAXES)), which


def _with_values(random: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    """A bundled file with other values in its header, as far as pydicom writes them."""
    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    header = pydicom.dcmread(io.BytesIO(content), force=True)
    done = []
    for _ in range(int(random.integers(1, 4))):
        keyword, value = pick(random, KEYWORDS), pick(random, VALUES)
        how = pick(random, ("set", "set", "set", "delete", "syntax", "table", "modality"))
        try:
            if how == "delete":
                delattr(header, keyword)
            elif how == "syntax":
                header.file_meta.TransferSyntaxUID = pick(random, SYNTAXES)
            elif how in ("table", "modality"):
                table = Dataset()
                table.LUTDescriptor = pick(random, ([256, 0, 8], [0, 0, 16], [1, 0, 8], [256, 0, 0], [4096, 5, 99], []))
                table.add_new("LUTData", "US", list(range(pick(random, (0, 1, 256)))))
                keyword = "VOILUTSequence" if how == "table" else "ModalityLUTSequence"
                setattr(header, keyword, Sequence(pick(random, ([], [table], [table, table], [Dataset()]))))
            else:
                setattr(header, keyword, value)
            done.append(f"{how} {keyword} {value!a}"[:60])
        except Exception:  # pydicom takes not every value.
            done.append("nothing")
    written = io.BytesIO()
    try:
        pydicom.dcmwrite(written, header, enforce_file_format=False)
    except Exception:  # Nor writes every one.
        return content, "nothing"
    return written.getvalue(), ", ".join(done)


def make(random: np.random.Generator, folder: Path) -> Input:
    """One DICOM file, given to the reader."""
    from shadow_defense.data.dicom_image import read_dicom

    warnings.simplefilter("ignore")
    choice = random.random()
    if choice < 0.3:
        content, what = _made(random)
    else:
        number = int(random.integers(len(bundled())))
        content, what = bundled()[number], f"bundled file {number}"
        if choice < 0.75:
            content, change = _with_values(random, content)
            what = f"{what}: {change}"
    if random.random() < 0.35:
        content, change = change_bytes(random, content)
        what = f"{what}; {change}"
    path = folder / "image.dcm"
    path.write_bytes(content)

    def give() -> None:
        image: Any = read_dicom(path)
        assert image.pixels.shape[0] == 1 and image.pixels.numel() > 0
        assert image.patient is None or len(image.patient) == 16

    return Input(what, give)


def _prepare(_: Path) -> None:
    import pydicom.pixels

    from shadow_defense.data.dicom_image import read_dicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Decoders are imported by the first file that needs one.
        for path in sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm"))[:30]:
            try:
                read_dicom(path)
            except Exception:
                continue


KIND = Kind(make, ("shadow_defense.data.dicom_image",), _prepare)
