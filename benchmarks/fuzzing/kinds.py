"""The kinds of input, by name."""

from __future__ import annotations

from fuzzing import arrays, dicom, folders, images, tables
from fuzzing.kind import Kind

KINDS: dict[str, Kind] = {
    "image": images.KIND,
    "dicom": dicom.KIND,
    "npz": arrays.KIND,
    "manifest": tables.KIND,
    "folder": folders.KIND,
}
