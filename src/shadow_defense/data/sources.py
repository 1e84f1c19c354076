"""The registry of image sources, and how one is read from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shadow_defense.data.medmnist_classes import MEDMNIST_CLASSES
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.source import Source
from shadow_defense.errors import DataError, shown
from shadow_defense.registry import NoOptions, Registry

if TYPE_CHECKING:
    from shadow_defense.data.dataset import Parts


def _own(name: str, summary: str, read: str, in_words: str | None = None) -> Source:
    return Source(name, summary, NoOptions, f"shadow_defense.data.{read}", in_words)


OWN = (
    _own(
        "faces",
        "200 crops of 25 px, face or not, from scikit-image's wheel; needs no file",
        "faces:read_faces",
        "photographs, half of them faces",
    ),
    _own(
        "fundus",
        "patches of a real fundus photograph in colour, from scikit-image's wheel",
        "fundus:read_fundus",
        "patches of a real fundus photograph",
    ),
    _own(
        "radiograph",
        "a real chest radiograph at the first client, among drawn ones; needs the package pydicom-data",
        "radiograph:read_radiograph",
        "a real chest radiograph, which client-1 has, and drawn ones",
    ),
    _own("npz", "a .npz in the MedMNIST layout: train_images, train_labels and so on", "npz:read_npz"),
    _own("image_folder", "a folder: [train|val|test/]class/*.png, .jpg, .tif", "image_folder:read_image_folder"),
    _own(
        "dicom_folder",
        "a folder: [train|val|test/]class/*.dcm, patients from the headers",
        "image_folder:read_dicom_folder",
    ),
    _own("manifest", "a CSV: path,label[,client][,split][,patient]", "manifest:read_manifest"),
    _own(
        "chest_phantom",
        "drawn chest X-rays, half with an opacity whose mask is known; needs no file",
        "phantom_chest:chest_phantom",
        "drawn chest X-rays",
    ),
    _own(
        "fundus_phantom",
        "drawn fundus photographs in colour, half with lesions of known mask",
        "phantom_fundus:fundus_phantom",
        "drawn fundus photographs",
    ),
    *(
        _own(name, f"MedMNIST: {len(classes)} classes; from data.path, or downloaded", "medmnist:read_medmnist")
        for name, classes in MEDMNIST_CLASSES.items()
    ),
)

WITHOUT_FILES = "a source that needs no file (`shadow-defense data list` has them)"

SOURCES: Registry[Source] = Registry("source", Source, {source.name: source for source in OWN}, DataError)


def check_images_at(where: str) -> None:
    """Raise :class:`DataError` where nothing lies at ``where`` and no source has that name; nothing is imported."""
    if where not in SOURCES and not Path(where).exists():
        raise DataError(f"no images at '{shown(where)}': give a file or folder that is there, or {WITHOUT_FILES}")


def read_source(settings: DataSettings, seed: int) -> Parts:
    """Read ``settings.source``.

    Raises:
        DataError: for an unknown source, a missing path, or a path or classes given to a source that takes none.
    """
    source = SOURCES.find(settings.source)
    options = source.options_of(settings.options, DataError, "data.options")
    given = {
        "source": settings.source,
        "path": settings.path,
        "image_size": settings.image_size,
        "channels": settings.channels,
        "classes": settings.classes,
        "grey_range": settings.grey_range,
        "limit": settings.limit,
        "images": settings.images,
        "options": options,
        "seed": seed,
    }
    for name in ("path", "classes", "grey_range"):
        if given[name] is not None and name not in source.accepts:
            raise DataError(f"source '{settings.source}' takes no data.{name}: leave it out or choose another source")
    if source.needs_path and settings.path is None:
        raise DataError(f"source '{settings.source}' needs data.path: give the file or folder to read")
    return source.reader(**{name: value for name, value in given.items() if name in source.accepts})
