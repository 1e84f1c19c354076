"""What the compressed pixels of a DICOM image claim, read from their headers before anything is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shadow_defense.data.boundary import check_pixels
from shadow_defense.data.picture import check_scans
from shadow_defense.errors import DataError, shown

# JPEG's start of frame, which holds the size: C0 to CF without tables (C4, C8, CC), and F7 of JPEG-LS.
START_OF_FRAME = (*(0xFFC0 + kind for kind in range(16) if kind not in (4, 8, 12)), 0xFFF7)
END_OF_IMAGE = 0xFFD9
JPEG_START, JPEG2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
CODING, START_OF_TILE, START_OF_DATA = 0xFF52, 0xFF90, 0xFF93
# Quantisation, pointers and comments cost a decoder nothing; what changes the coding of a part is left to converters.
HARMLESS = (0xFF5C, 0xFF5D, 0xFF55, 0xFF57, 0xFF58, 0xFF63, 0xFF64)
TILES = 1024
TILE_PARTS = 10 * TILES
SEGMENTS = 1000
# Layers times code blocks: an empty layer takes a byte of the file and a pass over all blocks.
VISITS = 4_000_000


def check_compressed(frame: bytes, width: int, height: int, samples: int, path: Path) -> None:
    """Check that a JPEG, JPEG-LS or JPEG 2000 frame is what the DICOM header says, and no more work than its pixels.

    JPEG 2000 (ISO/IEC 15444-1, annex A) lets some kilobytes ask for hours: by tiles, layers, precincts and code blocks.

    Raises:
        DataError: naming what differs or is too much.
        struct.error, IndexError: for a header that is cut off.
    """
    if frame.startswith(JPEG_START):
        claimed = _jpeg_size(frame)
        check_scans(frame, claimed[0] * claimed[1], path)
    elif frame.startswith(JPEG2000_START):
        claimed = _checked_jpeg2000(frame, samples, path)
    else:
        raise DataError(f"{shown(path)}: its pixels are no JPEG or JPEG 2000: replace or decompress the file")
    check_pixels(*claimed, path)
    if claimed != (width, height):
        raise DataError(
            f"{shown(path)}: compressed pixels of {claimed[0]} x {claimed[1]}, its header says {width} x {height}: "
            "replace the file"
        )


def _segments(frame: bytes, place: int, end: int) -> Iterator[tuple[int, int]]:
    """Marker and place of each segment from ``place`` on, up to and with the marker ``end``, which ends the header."""
    for _ in range(SEGMENTS):
        marker = struct.unpack_from(">H", frame, place)[0]
        yield marker, place
        if marker == end:
            return
        place += 2 + struct.unpack_from(">H", frame, place + 2)[0]
    raise ValueError(f"its compressed pixels have a header of more than {SEGMENTS} segments")


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    for marker, place in _segments(frame, 2, END_OF_IMAGE):
        if marker in START_OF_FRAME:
            height, width = struct.unpack_from(">HH", frame, place + 5)
            return width, height
    raise ValueError("its JPEG has no frame")


@dataclass(frozen=True)
class _Coding:
    """The segment COD: how every tile is coded."""

    layers: int
    levels: int
    block: int
    smallest_precinct: int

    @classmethod
    def read(cls, frame: bytes, place: int) -> _Coding:
        style, _, layers, _, levels, width, height = struct.unpack_from(">BBHBBBB", frame, place + 4)
        precincts = frame[place + 14 : place + 15 + levels] if style & 1 else b"\xff"
        return cls(
            layers, levels, 2 ** (width + height + 4), min(min(each & 15, each >> 4) for each in precincts or b"\0")
        )


def _checked_jpeg2000(frame: bytes, samples: int, path: Path) -> tuple[int, int]:
    refusal = f"{shown(path)}: JPEG 2000 with %s; decompress the file, as with dcmdjpeg or gdcmconv --raw"
    right, bottom, left, top, tile_width, tile_height, _, _, components = struct.unpack_from(">8IH", frame, 8)
    width, height = right - left, bottom - top
    check_pixels(width, height, path)
    if components != samples:
        raise DataError(refusal % f"{components} components, its header says {samples}")
    # A tile more a side than fit, for those that begin before the image.
    tiles = (width // max(tile_width, 1) + 2) * (height // max(tile_height, 1) + 2)
    if tiles > TILES:
        raise DataError(refusal % f"{tiles} tiles, expected at most {TILES}")
    coding, place = None, 4 + struct.unpack_from(">H", frame, 4)[0]
    for marker, at in _segments(frame, place, START_OF_TILE):
        if marker == CODING:
            coding = _Coding.read(frame, at)
        elif marker not in (*HARMLESS, START_OF_TILE):
            raise DataError(refusal % f"a segment {marker:04X}")
    if coding is None or coding.levels > 32 or coding.smallest_precinct < 5:
        raise DataError(refusal % "precincts below 32 pixels, or without a coding style")
    visits = coding.layers * components * (width * height // coding.block + tiles * (coding.levels + 1))
    if visits > VISITS:
        raise DataError(refusal % f"{coding.layers} layers of small blocks")
    _check_tile_headers(frame, at, refusal)
    return width, height


def _check_tile_headers(frame: bytes, place: int, refusal: str) -> None:
    """A tile may not change the coding that was checked."""
    for _ in range(TILE_PARTS):
        if frame[place : place + 2] != b"\xff\x90":
            return
        for marker, _ in _segments(frame, place + 12, START_OF_DATA):
            if marker not in (*HARMLESS, START_OF_DATA):
                raise DataError(refusal % f"a segment {marker:04X} in a tile")
        length = struct.unpack_from(">I", frame, place + 6)[0]
        if length < 14:
            # 0: the tile reaches to the end.
            return
        place += length
    raise DataError(refusal % f"more than {TILE_PARTS} parts of tiles")
