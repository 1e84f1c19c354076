"""Folders of DICOM images: root/[split/]class/*.dcm, with patients from the headers."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.data.dataset import Parts
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.image_files import read_image_files
from shadow_defense.data.image_folder import list_class_folders


def read_dicom_folder(
    *,
    path: Path,
    image_size: int | None,
    channels: int | None,
    classes: tuple[str, ...] | None = None,
    grey_range: tuple[float, float] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Parts:
    """Read ``path/[train|val|validation|test/]class/*.dcm``; groups are pseudonyms of PatientID.

    Raises:
        DataError: naming the folder or file that is missing, empty or unreadable.
    """
    listing = list_class_folders(path, (DICOM_SUFFIX,), classes)
    return read_image_files(
        listing.files,
        listing.class_names,
        image_size=image_size,
        channels=channels,
        grey_range=grey_range,
        limit=limit,
        seed=seed,
        notes=listing.notes,
    )
