"""Folders of images: root/[split/]class/file, the layout in which most data sets are handed around."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from shadow_defense.data.dataset import Parts
from shadow_defense.data.image_files import ImageFile, PartName, read_image_files
from shadow_defense.data.images import IMAGE_SUFFIXES
from shadow_defense.errors import DataError, unknown_name

SPLIT_FOLDERS: dict[str, PartName] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}


def read_image_folder(
    *,
    path: Path,
    image_size: int | None,
    channels: int | None,
    classes: tuple[str, ...] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Parts:
    """Read ``path/[train|val|validation|test/]class/*.{png,jpg,jpeg,tif,tiff}``; the id is the path below ``path``.

    Labels follow the alphabetical order of the class folders, or ``classes``. Patients are not guessed from file
    names, so groups are None: a manifest names patients.

    Raises:
        DataError: naming the folder or file that is missing, empty or unreadable.
    """
    files, names = list_class_folders(path, IMAGE_SUFFIXES, classes)
    return read_image_files(files, names, image_size=image_size, channels=channels, limit=limit, seed=seed)


def list_class_folders(
    root: Path, suffixes: tuple[str, ...], classes: tuple[str, ...] | None
) -> tuple[list[ImageFile], tuple[str, ...]]:
    """The image files below ``root``, in a stable order, and the class names in label order."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: correct data.path")
    folders = _subfolders(root)
    splits = {folder: SPLIT_FOLDERS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_FOLDERS}
    if splits and len(splits) < len(folders):
        stray = next(folder for folder in folders if folder not in splits)
        raise DataError(f"{stray} stands among split folders: expected only {', '.join(SPLIT_FOLDERS)} in {root}")
    if not splits:
        splits = {root: "train"}
    if "train" not in splits.values():
        raise DataError(f"{root} has no folder 'train' beside {', '.join(folder.name for folder in splits)}: add one")
    names = classes or tuple(
        sorted({folder.name for split, part in splits.items() if part == "train" for folder in _subfolders(split)})
    )
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class folders: expected two at least, as in {root}/normal/1.png")

    files = []
    for split, part in splits.items():
        for folder in _subfolders(split):
            if folder.name not in names:
                raise DataError(f"{folder}: {unknown_name('class', folder.name, names)}")
            found = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())
            if not found:
                raise DataError(f"{folder} holds no images{_what_instead(folder)}: expected {', '.join(suffixes)}")
            files += [
                ImageFile(file, file.relative_to(root).as_posix(), names.index(folder.name), part) for file in found
            ]
    return files, names


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _what_instead(folder: Path) -> str:
    seen = Counter("folders" if entry.is_dir() else entry.suffix or "files" for entry in folder.iterdir())
    return f" but {', '.join(f'{count} {name}' for name, count in seen.most_common(3))}" if seen else ""
