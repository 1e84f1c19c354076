"""Data sets that come in and go out in the same layout: an .npz of MedMNIST, or a folder of images by class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.archive import read_arrays
from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.image_folder import read_image_folder
from shadow_defense.data.npz import PARTS, read_npz
from shadow_defense.errors import DataError, shown
from shadow_defense.files import atomic_path

NAMES = {"train": "train", "val": "validation", "test": "test"}
"""What the parts of an .npz are called elsewhere."""


class Layout(ABC):
    """A data set as it was read, which can be written with other images in place of its own."""

    parts: Parts

    @abstractmethod
    def write(self, out: Path, images: Mapping[str, UInt8[Tensor, "_ c h w"]], kept: list[int]) -> None:
        """Write the data set below ``out``; what is there already stays.

        Args:
            images: of each part that there is, by ``train``, ``validation`` and ``test``, in the order of the parts.
            kept: places of the training images that go out.
        """

    def sets(self) -> dict[str, ImageSet]:
        """The parts that there are, by name."""
        every = {"train": self.parts.train, "validation": self.parts.validation, "test": self.parts.test}
        return {name: each for name, each in every.items() if each is not None}


class NpzLayout(Layout):
    """One .npz; labels and groups keep their arrays, images theirs but for the side."""

    def __init__(self, path: Path, image_size: int | None) -> None:
        self.path = path
        self.arrays = read_arrays(path)
        known = {f"{part}_{kind}" for part in PARTS for kind in ("images", "labels", "groups")}
        strange = sorted(self.arrays.keys() - known)
        if strange:
            raise DataError(
                f"{shown(path)} holds '{shown(strange[0])}', which may tell what the images don't: expected "
                "train_images, train_labels, train_groups and so on alone; save it without"
            )
        self.parts = read_npz(path=path, image_size=image_size, channels=None)

    def write(self, out: Path, images: Mapping[str, UInt8[Tensor, "_ c h w"]], kept: list[int]) -> None:
        target = out / self.path.name
        if target.exists():
            return
        written = dict(self.arrays)
        for part, name in NAMES.items():
            if name in images:
                before = self.arrays[f"{part}_images"]
                after = images[name].permute(0, 2, 3, 1).numpy()
                after = after[..., 0] if before.ndim == 3 else after
                written[f"{part}_images"] = (after / 255).astype(before.dtype) if before.dtype.kind == "f" else after
        for kind in ("labels", "groups"):
            if f"train_{kind}" in written:
                written[f"train_{kind}"] = written[f"train_{kind}"][kept]
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **written)


class FolderLayout(Layout):
    """A folder of class folders, in parts or not; every image becomes a PNG under its own name."""

    def __init__(self, path: Path, image_size: int | None) -> None:
        self.parts = read_image_folder(path=path, image_size=image_size, channels=None)
        names = [name for each in self.sets().values() for name in each.sample_ids]
        targets = [_png(name) for name in names]
        twice = next((name for name, target in zip(names, targets, strict=True) if targets.count(target) > 1), None)
        if twice is not None:
            raise DataError(f"{shown(path)} has two images that would become '{shown(_png(twice))}': rename one")

    def write(self, out: Path, images: Mapping[str, UInt8[Tensor, "_ c h w"]], kept: list[int]) -> None:
        from PIL import Image

        for name, pixels in images.items():
            given = self.sets()[name].sample_ids
            names = [given[place] for place in kept] if name == "train" else given
            for sample, image in zip(names, pixels, strict=True):
                target = out / _png(sample)
                if not target.exists():
                    array = image.permute(1, 2, 0).numpy()
                    with atomic_path(target) as temporary:
                        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(temporary, "PNG")


def _png(name: str) -> str:
    return Path(name).with_suffix(".png").as_posix()


def read_layout(path: Path, image_size: int | None) -> Layout:
    """Read the data set at ``path``.

    Raises:
        DataError: for what is neither of the two layouts, and whatever reading them raises.
    """
    if path.suffix == ".npz":
        return NpzLayout(path, image_size)
    if path.is_dir():
        return FolderLayout(path, image_size)
    raise DataError(f"no images at '{shown(path)}': give an .npz in the MedMNIST layout, or a folder of class folders")
