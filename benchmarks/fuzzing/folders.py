"""Folders of images: links, pipes, odd names, hidden files, nesting and splits as people's disks have them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np

from fuzzing import dicom, images
from fuzzing.kind import Input, Kind, pick

NAMES = (
    "a", "b", "normal", "Normal", "train", "TRAIN", "val", "test", "é", "e\u0301", "\x1b[2J", "two\nlines",
    "x" * 250, " ", "-rf", ".hidden", "._a", ".DS_Store", "__MACOSX", "Thumbs.db", "a.png", "0", "1", "10", "con",
    "~", "🩻", "\u202ea",
)  # fmt: skip
FILES = (
    "0.png",
    "._0.png",
    ".hidden.png",
    "0.PNG",
    "0.jpg",
    "0.tif",
    "0.dcm",
    "0.txt",
    "\x1b[2J.png",
    "two\nlines.png",
    "y" * 250 + ".png",
    "Thumbs.db",
    ".png",
    "0.png~",
)


def _file(random: np.random.Generator, path: Path) -> str:
    how = pick(
        random,
        (
            "image",
            "image",
            "image",
            "image",
            "image",
            "pipe",
            "loop",
            "dangling",
            "outside",
            "folder",
            "empty",
            "locked",
            "socket",
            "bytes",
        ),
    )
    if how in ("image", "locked"):
        path.write_bytes(pick(random, dicom.bundled()) if path.suffix == ".dcm" else images.encoded(random)[0])
        if how == "locked":
            path.chmod(0)
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("loop", "dangling", "outside"):
        target = {
            "loop": path.name,
            "dangling": "nothing",
            "outside": pick(random, ("/etc/passwd", "/dev/zero", "/", "..")),
        }
        path.symlink_to(target[how])
    elif how == "folder":
        path.mkdir()
    elif how == "empty":
        path.touch()
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            try:
                made.bind(str(path))
            except OSError:  # A path too long for a socket.
                path.touch()
    else:
        path.write_bytes(random.bytes(200))
    return how


def _fill(random: np.random.Generator, folder: Path, most: int) -> str:
    done = []
    for _ in range(int(random.integers(0, most))):
        path = folder / pick(random, FILES)
        if not path.is_symlink() and not path.exists():
            done.append(_file(random, path))
    return " ".join(done)


def _class(random: np.random.Generator, folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        path = folder / f"{number:03}{suffix}"
        if suffix == ".dcm":
            path.write_bytes(dicom.bundled("CT_small.dcm")[0])
        else:
            # A row's first byte names its filter.
            path.write_bytes(images.png(8, 8, 8, 0, b"".join(b"\0" + random.bytes(8) for _ in range(8))))


def make(random: np.random.Generator, folder: Path) -> Input:
    """One folder, given to the data set as a whole."""
    from shadow_defense.data.build import load_dataset
    from shadow_defense.data.settings import DataSettings, SplitSettings
    from shadow_defense.data.summary import summarise

    root, done = folder / "data", []
    source = pick(random, ("image_folder", "image_folder", "dicom_folder"))
    parts = pick(random, ((".",), (".",), ("train",), ("train", "test"), ("train", "val", "test"), ("test",)))
    for part in parts:
        for name in ("a", "b"):
            _class(random, root / part / name, ".dcm" if source == "dicom_folder" else ".png")
    for _ in range(pick(random, (0, 1, 1, 2, 3))):
        place = root / pick(random, parts) / pick(random, ("a", "b", ".", "..", "../.."))
        if root not in (place.resolve(), *place.resolve().parents):
            place = root
        name = pick(random, NAMES)
        how = pick(random, ("files", "files", "folder", "link", "deep", "unreadable", "bytes"))
        target = place / name
        if how == "files":
            how += f" {_fill(random, place, 4)}"
        elif target.exists() or target.is_symlink():
            continue
        elif how == "folder":
            target.mkdir()
            how += f" {name!a:.40} {_fill(random, target, 4)}"
        elif how == "link":
            target.symlink_to(pick(random, (".", "..", "nothing", name, "/proc", "/dev", "a")))
        elif how == "deep":
            (target / "/".join("d" * 3 for _ in range(pick(random, (3, 40))))).mkdir(parents=True)
        elif how == "unreadable":
            target.mkdir()
            target.chmod(0)
        else:
            Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe")).mkdir(exist_ok=True)
        done.append(how)
    path = pick(
        random,
        (
            root,
            root,
            root,
            root,
            root,
            root,
            root / "a",
            root / "none",
            Path("/dev/null"),
            root / "a" / "000.png",
            Path("a" * 5000),
            Path("x\0y"),
        ),
    )
    settings = DataSettings(
        source=source, path=path, image_size=pick(random, (8, 8, None)), split=SplitSettings(kind="iid", clients=2),
        limit=pick(random, (None, None, 4)),
    )  # fmt: skip

    def give() -> None:
        summarise(load_dataset(settings, 0))

    return Input(f"{source} of {'/'.join(parts)}: {', '.join(done) or 'valid'}; path {str(path.name)[:40]!a}", give)


def _prepare(folder: Path) -> None:
    images.KIND.prepare(folder)
    dicom.KIND.prepare(folder)


KIND = Kind(make, ("shadow_defense.data.build", "shadow_defense.data.summary"), _prepare)
