"""What the compressed pixels of a DICOM image claim, read from their headers before anything is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from shadow_defense.data.boundary import check_pixels
from shadow_defense.data.picture import check_scans
from shadow_defense.errors import DataError, shown

# JPEG's start of frame, which holds the size: C0 to CF without tables (C4, C8, CC), and F7 of JPEG-LS.
START_OF_FRAME = (*(0xC0 + kind for kind in range(16) if kind not in (4, 8, 12)), 0xF7)
JPEG_START, JPEG2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
CODING, START_OF_TILE, START_OF_DATA = 0xFF52, 0xFF90, 0xFF93
# Quantisation, pointers and comments cost a decoder nothing; what changes the coding of a part is left to converters.
HARMLESS = (0xFF5C, 0xFF5D, 0xFF55, 0xFF57, 0xFF58, 0xFF63, 0xFF64)
TILES = 1024
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


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    place = 2
    while frame[place + 1] not in START_OF_FRAME:
        # Any number of FF may stand before a marker.
        place += 1 if frame[place + 1] == 0xFF else 2 + struct.unpack_from(">H", frame, place + 2)[0]
    height, width = struct.unpack_from(">HH", frame, place + 5)
    return width, height


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
    place, coding = 4 + struct.unpack_from(">H", frame, 4)[0], None
    while (marker := struct.unpack_from(">H", frame, place)[0]) != START_OF_TILE:
        if marker == CODING:
            coding = _Coding.read(frame, place)
        elif marker not in HARMLESS:
            raise DataError(refusal % f"a segment {marker:04X}")
        place += 2 + struct.unpack_from(">H", frame, place + 2)[0]
    if coding is None or coding.levels > 32 or coding.smallest_precinct < 5:
        raise DataError(refusal % "precincts below 32 pixels, or without a coding style")
    visits = coding.layers * components * (width * height // coding.block + tiles * (coding.levels + 1))
    if visits > VISITS:
        raise DataError(refusal % f"{coding.layers} layers of small blocks")
    _check_tile_headers(frame, place, refusal)
    return width, height


def _check_tile_headers(frame: bytes, place: int, refusal: str) -> None:
    """A tile may not change the coding that was checked."""
    while place + 12 <= len(frame) and frame[place : place + 2] == b"\xff\x90":
        length = struct.unpack_from(">I", frame, place + 6)[0]
        inside = place + 12
        while (marker := struct.unpack_from(">H", frame, inside)[0]) != START_OF_DATA:
            if marker not in HARMLESS:
                raise DataError(refusal % f"a segment {marker:04X} in a tile")
            inside += 2 + struct.unpack_from(">H", frame, inside + 2)[0]
        if length < 14:
            # 0: the tile reaches to the end.
            return
        place += length
