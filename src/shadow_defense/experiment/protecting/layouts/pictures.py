"""Data sets of one file an image: a folder of class folders, a folder of DICOM, a CSV that lists files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.bits import keeps_more_than_bytes
from shadow_defense.data.dataset import Parts
from shadow_defense.data.images import as_bytes
from shadow_defense.data.manifest import OPTIONAL, REQUIRED, SPLITS
from shadow_defense.errors import DataError, shown
from shadow_defense.experiment.protecting.layouts.layout import Chunks, Layout
from shadow_defense.files import atomic_path

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
