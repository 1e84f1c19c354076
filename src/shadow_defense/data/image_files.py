"""From a list of image files, wherever it comes from, to the parts of a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.boundary import without_warnings
from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.dicom_image import DICOM_SUFFIX, read_dicom
from shadow_defense.data.grey_levels import FEW_LEVELS, count_levels
from shadow_defense.data.images import prepare, to_channels
from shadow_defense.data.picture import read_picture
from shadow_defense.data.splits import balanced_sample
from shadow_defense.errors import DataError, shown
from shadow_defense.seeds import seed_for

PartName = Literal["train", "validation", "test", "public"]

KEPT_BYTES = 2**30
"""Of decoded images, those of the last list of files, that a process keeps to deal them again."""


@dataclass(frozen=True)
class ImageFile:
    """One image file and what is known about it before it is opened."""

    path: Path
    sample_id: str
    label: int
    part: PartName
    patient: str | None = None
    client: str | None = None


def read_image_files(
    files: Sequence[ImageFile],
    class_names: tuple[str, ...],
    *,
    image_size: int | None,
    channels: int | None,
    limit: int | None,
    seed: int,
    grey_range: tuple[float, float] | None = None,
    notes: tuple[str, ...] = (),
) -> Parts:
    """Decode the files (PNG, JPEG, TIFF or DICOM) and sort them into parts.

    With ``limit`` only a class-balanced sample of the training files is opened at all. With ``channels`` None the
    set is colour as soon as one file is. Patients come from ``ImageFile.patient``, else from the DICOM header; a
    file without one counts as a patient of its own, and groups are None where no file has one.

    Args:
        grey_range: the grey values that become black and white, as in :func:`read_picture`.
        notes: what was noted when the files were listed; images of few grey levels are added to it.

    Raises:
        DataError: naming the file, when it cannot be read or differs in size while ``image_size`` is None.
    """
    train = [index for index, file in enumerate(files) if file.part == "train"]
    if not train:
        raise DataError("no training images: mark some as train")
    if limit is not None and limit < len(train):
        labels = np.array([files[index].label for index in train])
        kept = balanced_sample(labels, limit, np.random.default_rng(seed_for(seed, "data", "limit")))
        chosen = {train[index] for index in kept}
        files = [file for index, file in enumerate(files) if file.part != "train" or index in chosen]

    decoded = _decoded(tuple(_Version.of(file.path) for file in files), image_size, channels, grey_range)
    images = decoded.images
    if images.nbytes > KEPT_BYTES:
        _decoded.cache_clear()
    patients = [file.patient or found for file, found in zip(files, decoded.patients, strict=True)]
    flat = [shown(file.path) for file, levels in zip(files, decoded.levels, strict=True) if levels < FEW_LEVELS]
    if flat:
        notes += (f"{len(flat)} images have fewer than {FEW_LEVELS} of 256 grey levels, the first {flat[0]}",)
    known = any(patient is not None for patient in patients)

    def image_set(part: PartName) -> ImageSet | None:
        chosen = [index for index, file in enumerate(files) if file.part == part]
        if not chosen:
            return None
        names = tuple(files[index].sample_id for index in chosen)
        return ImageSet(
            images=images[torch.tensor(chosen)],
            labels=torch.tensor([files[index].label for index in chosen]),
            sample_ids=names,
            groups=tuple(patients[index] or f"file:{files[index].sample_id}" for index in chosen) if known else None,
        )

    clients = [file.client for file in files if file.part == "train"]
    training = image_set("train")
    assert training is not None
    return Parts(
        training,
        image_set("validation"),
        image_set("test"),
        class_names,
        public=image_set("public"),
        clients=tuple(client or "" for client in clients) if any(clients) else None,
        notes=notes,
    )


@dataclass(frozen=True)
class _Version:
    """A file as it lies there now."""

    path: Path
    state: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> _Version:
        """Without a state where it cannot be asked: reading it says why."""
        try:
            found = path.stat()
        except (OSError, ValueError):
            return cls(path, ())
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@dataclass(frozen=True)
class _Decoded:
    images: UInt8[Tensor, "n c h w"]
    patients: tuple[str | None, ...]
    levels: tuple[int, ...]


# Thousands of files take a minute, and every seed deals the same ones, each to other clients.
@lru_cache(maxsize=1)
def _decoded(
    files: tuple[_Version, ...],
    image_size: int | None,
    channels: int | None,
    grey_range: tuple[float, float] | None,
) -> _Decoded:
    paths = [file.path for file in files]
    # Decoders release the interpreter's lock; `map` keeps the order and raises the first error.
    with without_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(lambda path: _read_one(path, image_size, channels, grey_range), paths))
    images, patients, levels = zip(*found, strict=True)
    return _Decoded(_same_shape(paths, images), patients, levels)


def _read_one(
    path: Path, image_size: int | None, channels: int | None, grey_range: tuple[float, float] | None
) -> tuple[UInt8[Tensor, "1 c h w"], str | None, int]:
    """The image, its patient where the file names one, and how many grey levels it has."""
    patient = None
    if path.suffix.lower() == DICOM_SUFFIX:
        dicom = read_dicom(path, grey_range)
        pixels, patient = dicom.pixels, dicom.patient
    else:
        pixels = torch.from_numpy(read_picture(path, image_size, channels, grey_range))[None]
    # Counted before it is resized, which makes new levels between those that the file has.
    return prepare(pixels, image_size, channels), patient, count_levels(pixels.numpy())


def _same_shape(paths: Sequence[Path], images: Sequence[UInt8[Tensor, "1 _ _ _"]]) -> UInt8[Tensor, "n c h w"]:
    channels = max(image.shape[1] for image in images)
    images = [to_channels(image, channels) for image in images]
    first = images[0].shape
    for path, image in zip(paths, images, strict=True):
        if image.shape != first:
            raise DataError(
                f"{shown(path)} has {image.shape[2]} x {image.shape[3]} pixels where {shown(paths[0])} has "
                f"{first[2]} x {first[3]}: set data.image_size"
            )
    return torch.cat(images)
