"""Which layout a data set has."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.data.settings import DataSettings
from shadow_defense.data.source_at import source_at
from shadow_defense.data.sources import SOURCES, WITHOUT_FILES, read_source
from shadow_defense.errors import DataError, shown
from shadow_defense.experiment.protecting.layouts.archive import archive_at, archive_of
from shadow_defense.experiment.protecting.layouts.layout import Layout
from shadow_defense.experiment.protecting.layouts.pictures import DicomLayout, ManifestLayout, PicturesLayout


def read_layout(where: str, image_size: int | None, grey_range: tuple[float, float] | None, seed: int) -> Layout:
    """Read the data set at a path, or of a source that needs no file.

    Args:
        grey_range: the grey values that become black and white, where the files do not tell.

    Raises:
        DataError: where there is nothing that can be read, and whatever reading raises.
    """
    path = Path(where)
    found = source_at(path)
    if found is None and where in SOURCES and not SOURCES[where].needs_path:
        return archive_of(where, read_source(DataSettings(source=where, image_size=image_size), seed))
    if found is None:
        raise DataError(
            f"no images at '{shown(where)}': give an .npz in the MedMNIST layout, a folder of class folders (pictures "
            f"or DICOM), a CSV with the columns path and label, or {WITHOUT_FILES}"
        )
    if found.name == "npz":
        if grey_range is not None:
            raise DataError("--grey-range is for files of single images: leave it out for an .npz")
        return archive_at(path, image_size)
    parts = found.reader(path=path, image_size=image_size, channels=None, grey_range=grey_range)
    if found.name == "manifest":
        return ManifestLayout(path, parts)
    return {"image_folder": PicturesLayout, "dicom_folder": DicomLayout}[found.name](path.name, path, parts)
