"""Public images for the shadow generator: any folder, archive or named source; labels don't matter."""

from __future__ import annotations

from pathlib import Path

import torch

from shadow_defense.data.boundary import reading
from shadow_defense.data.dataset import ImageSet
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.image_files import ImageFile, read_image_files
from shadow_defense.data.image_folder import list_below
from shadow_defense.data.images import IMAGE_SUFFIXES
from shadow_defense.data.npz import read_npz
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.sources import SOURCES, WITHOUT_FILES, read_source
from shadow_defense.errors import DataError, shown
from shadow_defense.seeds import named_generator


def read_public_images(
    where: str, *, image_size: int | None, channels: int | None, limit: int | None, seed: int
) -> ImageSet:
    """All images below a folder, the training images of an .npz in the MedMNIST layout, or those of a named source.

    Labels say nothing where the images are all that lies below a folder.

    Args:
        limit: a random sample of at most this many.

    Raises:
        DataError: naming the file that is missing or unreadable, or the ways in which images can be given.
    """
    path = Path(where)
    with reading("the images", path, "give another path"):
        exists, is_folder = path.exists(), path.is_dir()
    if where in SOURCES and not exists:
        images = read_source(DataSettings(source=where, image_size=image_size, channels=channels), seed).train
    elif is_folder:
        suffixes = (*IMAGE_SUFFIXES, DICOM_SUFFIX)
        found = list_below(path, suffixes)
        if not found:
            raise DataError(
                f"{shown(path)} holds no images: expected {', '.join(suffixes)} in it or in folders below it"
            )
        files = [ImageFile(file, file.relative_to(path).as_posix(), 0, "train") for file in found]
        parts = read_image_files(files, ("public",), image_size=image_size, channels=channels, limit=limit, seed=seed)
        images = parts.train
    elif path.suffix == ".npz":
        images = read_npz(path=path, image_size=image_size, channels=channels).train
    else:
        raise DataError(
            f"no images at '{shown(where)}': give a folder of images, an .npz in the MedMNIST layout, or "
            f"{WITHOUT_FILES}"
        )
    if limit is not None and limit < len(images):
        order = named_generator(seed, "public", "limit")
        images = images.subset(torch.randperm(len(images), generator=order)[:limit].sort().values.numpy())
    return images
