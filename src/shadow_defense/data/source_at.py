"""Which source reads what lies at a path."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.data.boundary import reading
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.image_folder import list_below
from shadow_defense.data.images import IMAGE_SUFFIXES
from shadow_defense.data.source import Source
from shadow_defense.data.sources import SOURCES
from shadow_defense.errors import DataError, shown


def source_at(path: Path) -> Source | None:
    """The source that reads ``path``: an .npz, a CSV, or a folder of pictures or of DICOM; None for anything else.

    Raises:
        DataError: for a folder that holds pictures and DICOM together, or cannot be looked into.
    """
    if path.suffix.lower() in (".npz", ".csv"):
        return SOURCES["npz" if path.suffix.lower() == ".npz" else "manifest"]
    with reading("the folder", path, "give another path"):
        if not path.is_dir():
            return None
    if not list_below(path, (DICOM_SUFFIX,)):
        return SOURCES["image_folder"]
    if list_below(path, IMAGE_SUFFIXES):
        raise DataError(
            f"{shown(path)} holds pictures and DICOM: give a folder of one kind, or a CSV that lists both, with the "
            "columns path and label"
        )
    return SOURCES["dicom_folder"]
