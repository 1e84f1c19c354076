"""The MedMNIST layout: one .npz file with images and labels of each part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from shadow_defense.data.archive import read_arrays
from shadow_defense.data.boundary import CLASSES, IMAGES, check_name
from shadow_defense.data.dataset import ImageSet, Parts, check_labels
from shadow_defense.data.grey_levels import unit_to_bytes
from shadow_defense.data.images import prepare
from shadow_defense.errors import DataError, shown

PARTS = ("train", "val", "test")


def read_npz(
    *, path: Path, image_size: int | None, channels: int | None, classes: tuple[str, ...] | None = None
) -> Parts:
    """Read ``{train,val,test}_images`` (n, h, w) or (n, h, w, 3), ``*_labels`` (n,) or (n, 1), ``*_groups`` (n,).

    ``val`` and ``test`` may be missing, and groups (patients) everywhere. Images are bytes, or floats in [0, 1].
    Sample ids are ``train/0`` and so on: the place in the file.

    Raises:
        DataError: naming the file, the array and, where it can, the image.
    """
    arrays = _read_arrays(path)
    labels = {
        part: _labels(arrays[f"{part}_labels"], f"{shown(path)}: {part}_labels")
        for part in PARTS
        if f"{part}_labels" in arrays
    }
    for part in {"train"} | {name.split("_")[0] for name in arrays}:
        for array in (f"{part}_images", f"{part}_labels"):
            if array not in arrays:
                raise DataError(
                    f"{shown(path)} has no array '{array}': expected the MedMNIST layout, train_images and so on"
                )
    largest = max((int(values.max(initial=0)) for values in labels.values()), default=0)
    names = classes or tuple(str(label) for label in range(largest + 1))
    sets = {}
    for part, values in labels.items():
        check_labels(values, len(names), f"{path}: {part}_labels")
        sets[part] = _image_set(arrays, part, values, path, image_size, channels)
    return Parts(sets["train"], sets.get("val"), sets.get("test"), names)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npy":
        raise DataError(f"{shown(path)} holds one bare array: expected an .npz with train_images and so on")
    return read_arrays(path, [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels", "groups")])


def _labels(values: np.ndarray, origin: str) -> Int64[np.ndarray, " n"]:
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.ndim != 1 or flat.dtype.kind not in "iuf" or not np.array_equal(flat, np.floor(flat)):
        raise DataError(
            f"{origin}: {values.dtype} of shape {values.shape}: expected one whole number an image, the index of its "
            "class; several findings an image are not supported"
        )
    if len(flat) > IMAGES:
        raise DataError(f"{origin}: {len(flat)} images: expected at most {IMAGES}; split the file")
    # Before it becomes as many class names.
    if flat.max(initial=0) >= CLASSES:
        raise DataError(f"{origin}: label {flat.max():g}: expected 0 to {CLASSES - 1}; correct the labels")
    return flat.astype(np.int64)


def _image_set(
    arrays: Mapping[str, np.ndarray],
    part: str,
    labels: Int64[np.ndarray, " n"],
    path: Path,
    image_size: int | None,
    channels: int | None,
) -> ImageSet:
    pixels = _image_bytes(arrays[f"{part}_images"], f"{path}: {part}_images")
    groups = arrays.get(f"{part}_groups")
    for kind, length in (("labels", len(labels)), ("groups", len(pixels) if groups is None else len(groups))):
        if length != len(pixels):
            raise DataError(f"{path}: {len(pixels)} {part}_images but {length} {part}_{kind}: give one an image")
    return ImageSet(
        images=prepare(pixels, image_size, channels),
        labels=torch.from_numpy(labels),
        sample_ids=tuple(f"{part}/{index}" for index in range(len(labels))),
        groups=None
        if groups is None
        else tuple(check_name(str(group), f"{path}: a name in {part}_groups") for group in groups.ravel()),
    )


def _image_bytes(values: np.ndarray, origin: str) -> UInt8[Tensor, "n c h w"]:
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[3] not in (1, 3) or 0 in values.shape:
        raise DataError(f"{origin}: shape {values.shape}: expected (n, height, width) or (n, height, width, 3)")
    if values.dtype.kind == "f":
        values = unit_to_bytes(values, origin)
    if values.dtype != np.uint8:
        raise DataError(f"{origin}: {values.dtype}: expected bytes (uint8), or floats in [0, 1]; convert the array")
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
