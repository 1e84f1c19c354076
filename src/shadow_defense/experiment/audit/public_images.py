"""Public images with labels, as an attacker learns from them, read from what the command line names."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.duplicates import digests
from shadow_defense.data.image_files import read_image_files
from shadow_defense.data.image_folder import list_class_folders
from shadow_defense.data.images import IMAGE_SUFFIXES
from shadow_defense.data.manifest import read_manifest
from shadow_defense.data.npz import read_npz
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.sources import SOURCES, read_source
from shadow_defense.errors import ConfigError, DataError


def read_labelled_images(
    where: str, *, image_size: int, channels: int, classes: int, class_names: tuple[str, ...] | None = None
) -> ImageSet:
    """The public images of a folder with a sub-folder a class, an .npz, a manifest (.csv) or a named source.

    Those of the part that is marked public, else those for training.

    Args:
        image_size: side to which the images are brought, in pixels.
        classes: of the model; labels are 0 to classes - 1.
        class_names: in label order; None: in the alphabetical order of the sub-folders or the manifest's names.

    Raises:
        DataError: naming what is missing or unreadable, or the classes that the model does not have.
    """
    path = Path(where)
    parts = _read(where, path, image_size, channels, class_names)
    found = len(parts.class_names)
    # Numbers in a file are labels, with gaps or without; names are numbered here, and with gaps wrongly.
    named = path.is_dir() or any(not name.isdecimal() for name in parts.class_names)
    if found > classes or (named and found < classes):
        raise DataError(
            f"{where} has {found} classes ({', '.join(parts.class_names[:5])}{', ...' if found > 5 else ''}) and the "
            f"model {classes}: name the model's in label order, as in --set data.classes=[a,b]"
        )
    return parts.train if parts.public is None else parts.public


def _read(where: str, path: Path, image_size: int, channels: int, class_names: tuple[str, ...] | None) -> Parts:
    if where in SOURCES and not path.exists():
        parts = read_source(DataSettings(source=where, image_size=image_size, channels=channels), 0)
        if class_names is not None and parts.class_names != class_names:
            raise DataError(
                f"the classes of source '{where}' are {', '.join(parts.class_names)} in label order and the model's "
                f"{', '.join(class_names)}: give a folder with a sub-folder a class"
            )
        return parts
    if path.is_dir():
        listing = list_class_folders(path, (*IMAGE_SUFFIXES, DICOM_SUFFIX), class_names)
        return read_image_files(
            listing.files, listing.class_names, image_size=image_size, channels=channels, limit=None, seed=0
        )
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path=path, image_size=image_size, channels=channels, classes=class_names)
    if path.suffix == ".csv" and path.is_file():
        return read_manifest(path=path, image_size=image_size, channels=channels, classes=class_names)
    raise DataError(
        f"no labelled images at '{where}': give a folder with a sub-folder a class, an .npz in the MedMNIST layout, or "
        "a .csv with the columns path,label"
    )


def without_own(images: ImageSet, truths: UInt8[Tensor, "n c h w"]) -> ImageSet:
    """The images that are not, byte for byte, the client's: an attacker that learned from those would know the answer.

    Raises:
        ConfigError: where none is left.
    """
    own = set(digests(truths))
    others = [index for index, digest in enumerate(digests(images.images)) if digest not in own]
    if not others:
        raise ConfigError("--public holds nothing but the images of --truth: add images of others")
    return images.subset(others)
