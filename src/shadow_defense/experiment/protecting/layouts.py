"""Data sets as they were laid out, written with other images in place of their own: an .npz, or one file an image."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.archive import read_arrays
from shadow_defense.data.bits import keeps_more_than_bytes
from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.images import as_bytes
from shadow_defense.data.manifest import OPTIONAL, REQUIRED, SPLITS
from shadow_defense.data.npz import PARTS, read_npz
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.source_at import source_at
from shadow_defense.data.sources import SOURCES, WITHOUT_FILES, read_source
from shadow_defense.errors import DataError, shown
from shadow_defense.files import atomic_path

Chunks = Iterable[Float[Tensor, "_ c h w"]]
"""The images of a part in their order, in [0, 1], some at a time: all of a large set would not fit in memory."""


class Layout(ABC):
    """A data set as it was read, which can be written with other images in place of its own.

    Attributes:
        title: what to call it.
    """

    title: str
    parts: Parts

    @abstractmethod
    def write(self, out: Path, pictures: Mapping[str, Chunks], kept: list[int]) -> None:
        """Write the data set below ``out``; what is there already stays.

        Args:
            pictures: of each part that there is, by name as in :meth:`sets`.
            kept: places of the training images that go out.
        """

    def sets(self) -> dict[str, ImageSet]:
        """The parts that there are: ``train``, ``validation``, ``test`` and ``public``."""
        every = {
            "train": self.parts.train,
            "validation": self.parts.validation,
            "test": self.parts.test,
            "public": self.parts.public,
        }
        return {name: each for name, each in every.items() if each is not None}


MANIFEST = "manifest.csv"
"""Beside the pictures of a folder of DICOM, whose headers told the patients."""


class PicturesLayout(Layout):
    """Every image becomes a PNG under its own name, of 16 bits where its file has more than 8.

    Args:
        root: the folder in which sample ids are paths.

    Raises:
        DataError: where two images would become one file.
    """

    def __init__(self, title: str, root: Path, parts: Parts) -> None:
        self.title, self.root, self.parts = title, root, parts
        given: dict[str, str] = {}
        for name in (name for each in self.sets().values() for name in each.sample_ids):
            first = given.setdefault(target_of(name), name)
            if first != name:
                raise DataError(
                    f"'{shown(first)}' and '{shown(name)}' would both become '{shown(target_of(name))}': rename one"
                )

    def write(self, out: Path, pictures: Mapping[str, Chunks], kept: list[int]) -> None:
        for name, chunks in pictures.items():
            names = iter(self.names(name, kept))
            for image in (image for chunk in chunks for image in chunk):
                sample = next(names)
                write_png(out / target_of(sample), image, deep=keeps_more_than_bytes(self.root / sample))

    def names(self, part: str, kept: list[int]) -> Sequence[str]:
        """The sample ids of a part that go out."""
        given = self.sets()[part].sample_ids
        return [given[place] for place in kept] if part == "train" else given


class DicomLayout(PicturesLayout):
    """PNGs, and a CSV of their labels and patients, who are numbered: pseudonyms can be tried one by one."""

    def write(self, out: Path, pictures: Mapping[str, Chunks], kept: list[int]) -> None:
        super().write(out, pictures, kept)
        splits: dict[str, str] = {part: split for split, part in SPLITS.items()}
        numbers: dict[str, int] = {}
        rows = []
        for part, images in self.sets().items():
            chosen = images.subset(kept) if part == "train" else images
            for place, (sample, label) in enumerate(zip(chosen.sample_ids, chosen.labels.tolist(), strict=True)):
                row = {"path": target_of(sample), "label": self.parts.class_names[label], "split": splits[part]}
                if chosen.groups is not None:
                    row["patient"] = str(numbers.setdefault(chosen.groups[place], len(numbers) + 1))
                rows.append(row)
        write_csv(out / MANIFEST, list(rows[0]), rows)


class ManifestLayout(PicturesLayout):
    """The same CSV with the PNGs' paths, less the lines whose images do not go out.

    Raises:
        DataError: for a column of another name, which would be passed on as it is.
    """

    def __init__(self, path: Path, parts: Parts) -> None:
        super().__init__(path.name, path.parent, parts)
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, skipinitialspace=True, restval="")
            self.columns, self.rows = list(reader.fieldnames or ()), list(reader)
        # Cells beyond the last column stand under None.
        names = {name for row in self.rows for name in row if name is not None or any(row[name])}
        strange = sorted(str(name) for name in names - {*REQUIRED, *OPTIONAL})
        if strange:
            raise DataError(
                f"{shown(path)} has a column '{shown(strange[0])}', which may tell what the images don't: expected "
                f"{', '.join((*REQUIRED, *OPTIONAL))} alone; save it without"
            )

    def write(self, out: Path, pictures: Mapping[str, Chunks], kept: list[int]) -> None:
        super().write(out, pictures, kept)
        going = {name for part in self.sets() for name in self.names(part, kept)}
        rows = [row for row in self.rows if row["path"].strip() in going]
        write_csv(out / self.title, self.columns, [{**row, "path": target_of(row["path"].strip())} for row in rows])


def target_of(name: str) -> str:
    """Where the image of a sample id is written, below the folder: what leads out of it is left out of the path.

    >>> target_of("../scans/7.dcm"), target_of("/data/7.jpeg")
    ('scans/7.png', 'data/7.png')
    """
    path = Path(name)
    return Path(*(part for part in path.parts if part not in ("..", path.anchor))).with_suffix(".png").as_posix()


def write_png(path: Path, image: Float[Tensor, "c h w"], *, deep: bool) -> None:
    """An image in [0, 1] as a PNG of 8 bits, or of 16 (``deep``, grey); what is there stays."""
    from PIL import Image

    if path.exists():
        return
    if deep:
        array = (image[0].double() * 65535).round().numpy().astype(np.uint16)
    else:
        pixels = as_bytes(image[None])[0].permute(1, 2, 0).numpy()
        array = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, "PNG")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """A CSV with a header; what is there stays."""
    if path.exists():
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)


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
