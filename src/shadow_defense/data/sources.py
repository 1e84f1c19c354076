"""The registry of image sources, and how one is read from the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from shadow_defense.data.dataset import Parts
from shadow_defense.data.dicom_folder import read_dicom_folder
from shadow_defense.data.faces import read_faces
from shadow_defense.data.image_folder import read_image_folder
from shadow_defense.data.manifest import read_manifest
from shadow_defense.data.medmnist import MEDMNIST_CLASSES, read_medmnist
from shadow_defense.data.npz import read_npz
from shadow_defense.data.phantom_chest import chest_phantom
from shadow_defense.data.phantom_fundus import fundus_phantom
from shadow_defense.data.settings import DataSettings
from shadow_defense.errors import DataError, unknown_name


@dataclass(frozen=True)
class Source:
    """A source of images: one line for `shadow-defense data list`, and the function that reads it.

    Attributes:
        read: takes, by name, those fields of :class:`DataSettings` (and the seed) that its signature lists.
    """

    description: str
    read: Callable[..., Parts]


SOURCES: dict[str, Source] = {
    "faces": Source("200 crops of 25 px, face or not, from scikit-image's wheel; needs no file", read_faces),
    "chest_phantom": Source(
        "drawn chest X-rays, half with an opacity whose mask is known; needs no file", chest_phantom
    ),
    "fundus_phantom": Source("drawn fundus photographs in colour, half with lesions of known mask", fundus_phantom),
    "npz": Source("a .npz in the MedMNIST layout: train_images, train_labels and so on", read_npz),
    "image_folder": Source("a folder: [train|val|test/]class/*.png, .jpg, .tif", read_image_folder),
    "dicom_folder": Source("a folder: [train|val|test/]class/*.dcm, patients from the headers", read_dicom_folder),
    "manifest": Source("a CSV: path,label[,client][,split][,patient]", read_manifest),
    **{
        name: Source(f"MedMNIST: {len(classes)} classes; from data.path, or downloaded", partial(read_medmnist, name))
        for name, classes in MEDMNIST_CLASSES.items()
    },
}


def read_source(settings: DataSettings, seed: int) -> Parts:
    """Read ``settings.source``.

    Raises:
        DataError: for an unknown source, a missing path, or a path or classes given to a source that takes none.
    """
    if settings.source not in SOURCES:
        raise DataError(unknown_name("data source", settings.source, SOURCES))
    read = SOURCES[settings.source].read
    accepted = inspect.signature(read).parameters
    given = {
        "path": settings.path,
        "image_size": settings.image_size,
        "channels": settings.channels,
        "classes": settings.classes,
        "grey_range": settings.grey_range,
        "limit": settings.limit,
        "images": settings.images,
        "seed": seed,
    }
    for name in ("path", "classes", "grey_range"):
        if given[name] is not None and name not in accepted:
            raise DataError(f"source '{settings.source}' takes no data.{name}: leave it out or choose another source")
    if "path" in accepted and accepted["path"].default is inspect.Parameter.empty and settings.path is None:
        raise DataError(f"source '{settings.source}' needs data.path: give the file or folder to read")
    return read(**{name: value for name, value in given.items() if name in accepted})
