"""Arrays out of an .npz, whose headers are checked before a byte is inflated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from shadow_defense.data.boundary import open_plain, reading
from shadow_defense.errors import DataError, shown

ARCHIVE_BYTES = 64 * 2**30
MEMBERS = 10_000
# Real images shrink to a tenth at best; a file of some megabytes that asks for gigabytes is none of them.
SMALL = 512 * 2**20
RATIO = 20
# Numbers and text of fixed width; objects would have to be unpickled.
KINDS = "buifSU"


def read_arrays(path: Path, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays ``wanted`` (None: all) that an .npz of plain or deflated members holds.

    Raises:
        DataError: naming the file, when it is missing, no .npz, damaged, encrypted, compressed otherwise, holds
            objects, or would inflate to more than 512 MiB and 20 times its size.
    """
    with (
        reading(".npz", path, "copy or download the file again"),
        open_plain(path, ARCHIVE_BYTES) as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = [each for each in archive.infolist() if each.filename.endswith(".npy")]
        if len(members) > MEMBERS:
            raise DataError(f"{shown(path)} holds {len(members)} arrays: expected at most {MEMBERS}")
        chosen = {each.filename[:-4]: each for each in members if wanted is None or each.filename[:-4] in wanted}
        inflated, most = sum(each.file_size for each in chosen.values()), max(SMALL, RATIO * path.stat().st_size)
        if inflated > most:
            raise DataError(f"{shown(path)} would inflate to {inflated} bytes: expected at most {most}; save it anew")
        return {name: _array(archive, member, path) for name, member in chosen.items()}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    where = f"{shown(path)}: {shown(member.filename)}"
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is encrypted or compressed in a way of its own: save it with numpy.savez_compressed")
    with archive.open(member) as stream:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, columns_first, dtype = read_header(stream)
        if dtype.kind not in KINDS or dtype.hasobject:
            raise DataError(f"{where} holds {shown(dtype, 40)}: expected numbers or text; convert the array")
        # What the header claims must lie in the member, or the memory would be taken for nothing.
        count = math.prod(shape)
        data = stream.read(count * dtype.itemsize) if count * dtype.itemsize <= member.file_size else b""
        if len(data) != count * dtype.itemsize:
            raise DataError(f"{where} is cut off: {shape} of {dtype} is more than it holds; copy the file again")
        if stream.read(1):
            raise DataError(f"{where} holds more than its {shape} of {dtype}: save the array again")
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if columns_first else "C")
