"""Folders of images: root/[split/]class/file, the layout in which most data sets are handed around."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shadow_defense.data.boundary import IMAGES, check_name, reading
from shadow_defense.data.dataset import Parts
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.image_files import ImageFile, PartName, read_image_files
from shadow_defense.data.images import IMAGE_SUFFIXES
from shadow_defense.data.labels import check_class_names
from shadow_defense.errors import DataError, shown, unknown_name

SPLIT_FOLDERS: dict[str, PartName] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
HINT = "make it readable or give another"


@dataclass(frozen=True)
class Listing:
    """Image files in a stable order, class names in label order, and a note where hidden files were passed over."""

    files: list[ImageFile]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def read_image_folder(
    *,
    path: Path,
    image_size: int | None,
    channels: int | None,
    classes: tuple[str, ...] | None = None,
    grey_range: tuple[float, float] | None = None,
    limit: int | None = None,
    seed: int = 0,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
) -> Parts:
    """Read ``path/[train|val|validation|test/]class/[images/]*`` with one of ``suffixes``; the id is the path below it.

    All of it may lie in one folder more, as archives have it.
    Labels follow the alphabetical order of the class folders, or ``classes``. Patients are not guessed from file
    names: groups are pseudonyms of PatientID in a DICOM header, else None; a manifest names patients.

    Raises:
        DataError: naming the folder or file that is missing, empty or unreadable.
    """
    listing = list_class_folders(path, suffixes, classes)
    return read_image_files(
        listing.files,
        listing.class_names,
        image_size=image_size,
        channels=channels,
        grey_range=grey_range,
        limit=limit,
        seed=seed,
        notes=listing.notes,
    )


read_dicom_folder = partial(read_image_folder, suffixes=(DICOM_SUFFIX,))
"""The same for files of DICOM."""


def list_class_folders(root: Path, suffixes: tuple[str, ...], classes: tuple[str, ...] | None) -> Listing:
    """The image files below ``root``; hidden ones (``._1.png`` of macOS among them) are passed over and counted."""
    with reading("the folder", root, HINT):
        if not root.is_dir():
            raise DataError(f"{shown(root)} is not a folder: correct data.path")
        return _list(_unpacked(root), root, suffixes, classes)


def list_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """All files below ``root`` with one of ``suffixes``, sorted; hidden files and linked folders are passed over."""

    def tell(error: OSError) -> None:
        raise error

    with reading("the folder", root, HINT):
        found: list[Path] = []
        # Linked folders may lead round in a circle.
        for place, folders, names in os.walk(root, onerror=tell, followlinks=False):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(place, name) for name in _images(names, suffixes)]
            _check_count(len(found), root)
        return sorted(found)


def _unpacked(root: Path) -> Path:
    """Where the class folders lie: in the one folder that an archive had around them, or in ``root`` itself."""
    folders = [folder for folder in _subfolders(root) if folder.name != "__MACOSX"]
    if len(folders) != 1 or folders[0].name.lower() in SPLIT_FOLDERS:
        return root
    inside = [folder.name for folder in _subfolders(folders[0])]
    # One class with folders of pictures and masks is no data set.
    return folders[0] if len(inside) > 1 and "images" not in inside else root


def _list(home: Path, root: Path, suffixes: tuple[str, ...], classes: tuple[str, ...] | None) -> Listing:
    folders = _subfolders(home)
    splits = {folder: SPLIT_FOLDERS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_FOLDERS}
    if splits and len(splits) < len(folders):
        stray = next(folder for folder in folders if folder not in splits)
        raise DataError(
            f"{shown(stray)} stands among split folders: expected only {', '.join(SPLIT_FOLDERS)} in {shown(home)}"
        )
    if not splits:
        splits = {home: "train"}
    if "train" not in splits.values():
        beside = shown(", ".join(folder.name for folder in splits))
        raise DataError(f"{shown(home)} has no folder 'train' beside {beside}: add one")
    names = classes or tuple(
        sorted({folder.name for split, part in splits.items() if part == "train" for folder in _subfolders(split)})
    )
    if len(names) < 2:
        raise DataError(
            f"{shown(root)} has {len(names)} class folders: expected two at least, as in {shown(root)}/normal/1.png"
        )
    check_class_names(names, shown(root))

    files: list[ImageFile] = []
    hidden = 0
    for split, part in splits.items():
        for folder in _subfolders(split):
            if folder.name not in names:
                raise DataError(f"{shown(folder)}: {unknown_name('class', shown(folder.name), names)}")
            inside = [entry.name for entry in folder.iterdir()]
            place = folder
            if not _images(inside, suffixes) and "images" in inside and (folder / "images").is_dir():
                # As in the COVID-19 Radiography Database, whose masks lie in a folder beside.
                place = folder / "images"
                inside = [entry.name for entry in place.iterdir()]
            found = [place / name for name in sorted(_images(inside, suffixes))]
            hidden += sum(name.startswith(".") and name.lower().endswith(suffixes) for name in inside)
            if not found:
                raise DataError(
                    f"{shown(folder)} holds no images{_what_instead(folder)}: expected {', '.join(suffixes)}"
                )
            label = names.index(folder.name)
            for file in found:
                name = check_name(file.relative_to(root).as_posix(), f"{shown(root)}: a file's name")
                files.append(ImageFile(file, name, label, part))
            _check_count(len(files), root)
    notes = (f"{hidden} hidden files passed over, such as macOS's '._1.png'",) if hidden else ()
    return Listing(files, names, notes)


def _images(names: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]


def _check_count(count: int, root: Path) -> None:
    if count > IMAGES:
        raise DataError(f"{shown(root)} holds more than {IMAGES} images: expected at most that many; give a part of it")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _what_instead(folder: Path) -> str:
    seen = Counter("folders" if entry.is_dir() else entry.suffix or "files" for entry in folder.iterdir())
    return f" but {', '.join(f'{count} {shown(name, 20)}' for name, count in seen.most_common(3))}" if seen else ""
