"""One .npz in the MedMNIST layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from shadow_defense.data.archive import read_arrays
from shadow_defense.data.dataset import Parts
from shadow_defense.data.images import as_bytes
from shadow_defense.data.npz import PARTS, read_npz
from shadow_defense.errors import DataError, shown
from shadow_defense.experiment.protecting.layouts.layout import Chunks, Layout
from shadow_defense.files import atomic_path

NAMES = {"train": "train", "val": "validation", "test": "test"}
"""What the parts of an .npz are called elsewhere."""


class ArchiveLayout(Layout):
    """Labels and groups keep their arrays, images theirs but for the side; floats are not rounded."""

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray], parts: Parts) -> None:
        self.title, self.arrays, self.parts = name, arrays, parts

    def write(self, out: Path, pictures: Mapping[str, Chunks], kept: list[int]) -> None:
        target = out / self.title
        if target.exists():
            return
        written = dict(self.arrays)
        for part, name in NAMES.items():
            if name in pictures:
                written[f"{part}_images"] = _like(self.arrays[f"{part}_images"], pictures[name])
        for kind in ("labels", "groups"):
            if f"train_{kind}" in written:
                written[f"train_{kind}"] = written[f"train_{kind}"][kept]
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **written)


def archive_at(path: Path, image_size: int | None) -> ArchiveLayout:
    """Read an .npz.

    Raises:
        DataError: where it holds arrays of another name, which would be passed on as they are.
    """
    arrays = read_arrays(path)
    known = {f"{part}_{kind}" for part in PARTS for kind in ("images", "labels", "groups")}
    strange = sorted(arrays.keys() - known)
    if strange:
        raise DataError(
            f"{shown(path)} holds '{shown(strange[0])}', which may tell what the images don't: expected "
            "train_images, train_labels, train_groups and so on alone; save it without"
        )
    return ArchiveLayout(path.name, arrays, read_npz(path=path, image_size=image_size, channels=None))


def archive_of(name: str, parts: Parts) -> ArchiveLayout:
    """What a source without files gives, as the .npz that it becomes."""
    layout = ArchiveLayout(f"{name}.npz", {}, parts)
    sets = layout.sets()
    arrays: dict[str, np.ndarray] = {}
    for part, each in ((part, sets[other]) for part, other in NAMES.items() if other in sets):
        arrays[f"{part}_images"] = _pixels(each.images).numpy()
        arrays[f"{part}_labels"] = each.labels[:, None].numpy()
        if each.groups is not None:
            arrays[f"{part}_groups"] = np.array(each.groups)
    return ArchiveLayout(layout.title, arrays, parts)


def _like(before: np.ndarray, chunks: Chunks) -> np.ndarray:
    """Images in the array's own order and type."""
    if before.dtype.kind == "f":
        return np.concatenate([_pixels(chunk).numpy().astype(before.dtype) for chunk in chunks])
    return np.concatenate([_pixels(as_bytes(chunk)).numpy() for chunk in chunks])


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """(n, h, w) for grey, (n, h, w, 3) for colour."""
    last = images.permute(0, 2, 3, 1)
    return last[..., 0] if last.shape[3] == 1 else last
