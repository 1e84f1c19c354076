"""A CSV that names each image, its label and, where known, its client, part and patient."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow_defense.data.dataset import Parts
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.image_files import ImageFile, PartName, read_image_files
from shadow_defense.data.images import IMAGE_SUFFIXES
from shadow_defense.errors import DataError, unknown_name

SPLITS: dict[str, PartName] = {"train": "train", "val": "validation", "test": "test", "public": "public"}
REQUIRED = ("path", "label")
OPTIONAL = ("client", "split", "patient")


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
    limit: int | None = None,
    seed: int = 0,
) -> Parts:
    """Read the images listed in a CSV with the columns ``path,label[,client][,split][,patient]``.

    Paths (PNG, JPEG, TIFF, DICOM) are relative to the CSV and serve as sample ids. Labels are whole numbers from 0,
    or names, ordered by ``classes`` or alphabetically. Splits are train, val, test and public; without the column
    every image is for training. Every training image names a client, or none does.

    Raises:
        DataError: with the file and the line number.
    """
    rows = _read_rows(path)
    labels, names = _labels(rows, classes)
    has_clients = any(row.values["client"] for row in rows)
    files: list[ImageFile] = []
    for row, label in zip(rows, labels, strict=True):
        name, split, client = row.values["path"], row.values["split"], row.values["client"]
        file = path.parent / name
        if split not in SPLITS:
            raise DataError(f"{row.place}: {unknown_name('split', split, SPLITS)}")
        if file.suffix.lower() not in (*IMAGE_SUFFIXES, DICOM_SUFFIX):
            raise DataError(
                f"{row.place}: '{name}' is no image: expected {', '.join(IMAGE_SUFFIXES)} or {DICOM_SUFFIX}"
            )
        if not file.is_file():
            raise DataError(f"{row.place}: {file} does not exist: correct the path, which is relative to the CSV")
        if has_clients and SPLITS[split] == "train" and not client:
            raise DataError(f"{row.place}: no client, though other lines name one: fill in the column or leave it out")
        files.append(ImageFile(file, name, label, SPLITS[split], row.values["patient"] or None, client or None))
    _refuse_repeats(rows)
    _refuse_idle_clients(rows, files)
    return read_image_files(files, names, image_size=image_size, channels=channels, limit=limit, seed=seed)


def _read_rows(path: Path) -> list[Row]:
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = tuple(reader.fieldnames or ())
            for column in REQUIRED:
                if column not in columns:
                    raise DataError(f"{path} line 1: no column '{column}' in '{','.join(columns)}': add it")
            rows = []
            for values in reader:
                row = {name: (values.get(name) or "").strip() for name in (*REQUIRED, *OPTIONAL)}
                if "split" not in columns:
                    row["split"] = "train"
                rows.append(Row(f"{path} line {reader.line_num}", row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the manifest {path}: {error}; give a CSV in UTF-8") from error
    if not rows:
        raise DataError(f"{path} lists no images: add lines below the header")
    return rows


def _labels(rows: Sequence[Row], classes: tuple[str, ...] | None) -> tuple[list[int], tuple[str, ...]]:
    given = [row.values["label"] for row in rows]
    for row, label in zip(rows, given, strict=True):
        if not label:
            raise DataError(f"{row.place}: no label: fill in the column")
    numeric = given[0].isdecimal() and (classes is None or given[0] not in classes)
    if numeric:
        for row, label in zip(rows, given, strict=True):
            if not label.isdecimal() or (classes is not None and int(label) >= len(classes)):
                expected = "a whole number from 0" if classes is None else f"0 to {len(classes) - 1}"
                raise DataError(f"{row.place}: label '{label}' is out of range: expected {expected}")
        names = classes or tuple(str(number) for number in range(max(map(int, given)) + 1))
        return [int(label) for label in given], names
    names = classes or tuple(sorted(set(given)))
    for row, label in zip(rows, given, strict=True):
        if label not in names:
            raise DataError(f"{row.place}: {unknown_name('label', label, names)}")
    return [names.index(label) for label in given], names


def _refuse_repeats(rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.values["path"], row)
        if first is not row:
            raise DataError(f"{row.place}: '{row.values['path']}' stands in {first.place} too: keep one of them")


def _refuse_idle_clients(rows: Sequence[Row], files: Sequence[ImageFile]) -> None:
    training = {file.client for file in files if file.part == "train"}
    for row, file in zip(rows, files, strict=True):
        if file.client is not None and file.client not in training:
            raise DataError(
                f"{row.place}: client '{file.client}' has no images to train on: give it some or leave it out"
            )
