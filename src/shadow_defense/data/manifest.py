"""A CSV that names each image, its label and, where known, its client, part and patient."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow_defense.data.boundary import IMAGES, check_name, open_plain, reading
from shadow_defense.data.dataset import Parts
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.image_files import ImageFile, PartName, read_image_files
from shadow_defense.data.images import IMAGE_SUFFIXES
from shadow_defense.data.labels import read_labels
from shadow_defense.errors import DataError, shown, unknown_name

SPLITS: dict[str, PartName] = {"train": "train", "val": "validation", "test": "test", "public": "public"}
REQUIRED = ("path", "label")
OPTIONAL = ("client", "split", "patient")
MANIFEST_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Row:
    """One line of the CSV: its place (for messages) and its stripped values; absent columns are empty."""

    place: str
    values: dict[str, str]


def read_manifest(
    *,
    path: Path,
    image_size: int | None,
    channels: int | None,
    classes: tuple[str, ...] | None = None,
    grey_range: tuple[float, float] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Parts:
    """Read the images listed in a CSV with the columns ``path,label[,client][,split][,patient]``.

    Paths (PNG, JPEG, TIFF, DICOM) are relative to the CSV and serve as sample ids. Labels are read by
    :func:`read_labels`. Splits are train, val, test and public; without the column
    every image is for training. Every training image names a client, or none does.

    Raises:
        DataError: with the file and the line number.
    """
    rows = _read_rows(path)
    labels, names = read_labels([row.values["label"] for row in rows], [row.place for row in rows], classes)
    has_clients = any(row.values["client"] for row in rows)
    files: list[ImageFile] = []
    for row, label in zip(rows, labels, strict=True):
        name, split, client = row.values["path"], row.values["split"], row.values["client"]
        file = path.parent / name
        if split not in SPLITS:
            raise DataError(f"{row.place}: {unknown_name('split', shown(split), SPLITS)}")
        if file.suffix.lower() not in (*IMAGE_SUFFIXES, DICOM_SUFFIX):
            raise DataError(
                f"{row.place}: '{shown(name)}' is no image: expected {', '.join(IMAGE_SUFFIXES)} or {DICOM_SUFFIX}"
            )
        with reading(f"the image of {row.place}:", file, "correct the path, which is relative to the CSV"):
            if not file.exists():
                raise DataError(
                    f"{row.place}: {shown(file)} does not exist: correct the path, which is relative to the CSV"
                )
        if has_clients and SPLITS[split] == "train" and not client:
            raise DataError(f"{row.place}: no client, though other lines name one: fill in the column or leave it out")
        files.append(ImageFile(file, name, label, SPLITS[split], row.values["patient"] or None, client or None))
    _refuse_repeats(rows)
    _refuse_idle_clients(rows, files)
    return read_image_files(
        files, names, image_size=image_size, channels=channels, grey_range=grey_range, limit=limit, seed=seed
    )


def _read_rows(path: Path) -> list[Row]:
    # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
    with (
        reading("the manifest", path, "give a CSV in UTF-8"),
        open_plain(path, MANIFEST_BYTES) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
    ):
        reader = csv.reader(text, skipinitialspace=True)
        columns = _columns(next(reader, []), path)
        rows: list[Row] = []
        for cells in reader:
            if not cells:
                continue
            if len(rows) == IMAGES:
                raise DataError(f"{shown(path)} lists more than {IMAGES} images: expected at most that many; split it")
            place = f"{shown(path)} line {reader.line_num}"
            row = {
                name: check_name(cells[column].strip(), f"{place}: {name}") if column < len(cells) else ""
                for name, column in columns.items()
            }
            rows.append(Row(place, {"split": "train", "client": "", "patient": "", **row}))
    if not rows:
        raise DataError(f"{shown(path)} lists no images: add lines below the header")
    return rows


def _columns(header: Sequence[str], path: Path) -> dict[str, int]:
    """The place of each column that counts."""
    for column in REQUIRED:
        if column not in header:
            raise DataError(f"{shown(path)} line 1: no column '{column}' in '{shown(','.join(header))}': add it")
    for column in (*REQUIRED, *OPTIONAL):
        if header.count(column) > 1:
            raise DataError(f"{shown(path)} line 1: {header.count(column)} columns '{column}': keep one")
    return {column: header.index(column) for column in (*REQUIRED, *OPTIONAL) if column in header}


def _refuse_repeats(rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.values["path"], row)
        if first is not row:
            raise DataError(f"{row.place}: '{shown(row.values['path'])}' stands in {first.place} too: keep one of them")


def _refuse_idle_clients(rows: Sequence[Row], files: Sequence[ImageFile]) -> None:
    training = {file.client for file in files if file.part == "train"}
    for row, file in zip(rows, files, strict=True):
        if file.client is not None and file.client not in training:
            raise DataError(
                f"{row.place}: client '{shown(file.client)}' has no images to train on: give it some or leave it out"
            )
