"""CSV manifests: columns, labels, paths, clients, encodings and quoting that no data set should have, and does."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import TEXTS, change_bytes

LABELS = (
    "0", "1", "2", "1.0", "2.0", "10.0", "-1", "-1.0", "nan", "a|b", "a", "b", "Normal", "normal", "", "2147483647",
    "٣", "²", "9" * 5000, "1e3", "0x1", "+1", "1_000", "\x1b[31m", "True", "No Finding", "1,5",
)  # fmt: skip
PATHS = (
    "missing.png", "../0.png", "/etc/passwd", "/dev/zero.png", "a\x00.png", "x" * 5000 + ".png", "folder.png",
    "pipe.png", "loop.png", "dangling.png", "0.png/0.png", "~/0.png", "0.PNG", "0.txt", "./0.png", "file://0.png",
    "\x1b[2J.png", ".", "fake.png", "c:\\0.png", "0.png ", "http://example.org/0.png",
)  # fmt: skip
CLIENTS = (
    "a",
    "b",
    "",
    "x/../../../escaped",
    "..",
    "a\x00b",
    "\x1b[2J",
    "c" * 3000,
    "a\nb",
    "é",
    "e\u0301",
    "A",
    "con",
)
SPLITS = ("train", "val", "test", "public", "Train", "", "x", "\x1b[0m")


def images(folder: Path, count: int = 8) -> list[str]:
    """Small valid PNGs, and beside them what only looks like one."""
    from PIL import Image

    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.fromarray(np.full((8, 8), number * 20, np.uint8)).save(folder / name)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nothing")
    (folder / "fake.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    return names


def _rows(random: np.random.Generator, names: list[str]) -> tuple[list[list[str]], str]:
    columns = ["path", "label", *(each for each in ("client", "split", "patient") if random.random() < 0.5)]
    rows = []
    for number, name in enumerate(names):
        row = {
            "path": name,
            "label": str(number % 2),
            "client": "ab"[number // 2 % 2],
            "split": "train",
            "patient": f"p{number}",
        }
        rows.append([row[column] for column in columns])
    done = []
    for _ in range(pick(random, (0, 1, 1, 1, 2, 3))):
        how = pick(
            random,
            (
                "label",
                "label",
                "labels",
                "path",
                "path",
                "client",
                "clients",
                "split",
                "patient",
                "text",
                "columns",
                "repeat",
                "shorter",
            ),
        )
        row = pick(random, rows)
        options = {"label": LABELS, "path": PATHS, "client": CLIENTS, "split": SPLITS, "patient": TEXTS}
        if how in options and how in columns:
            row[columns.index(how) % len(row)] = value = pick(random, options[how])
            how = f"{how} {value!a}"[:60]
        elif how == "labels":
            some = [pick(random, LABELS) for _ in range(3)]
            for each in rows:
                each[1 % len(each)] = pick(random, some)
            how = f"labels {some!a}"[:80]
        elif how == "clients" and "client" in columns:
            for each in rows:
                each[columns.index("client") % len(each)] = pick(random, CLIENTS)
        elif how == "text":
            row[int(random.integers(len(row)))] = pick(random, TEXTS)
        elif how == "columns":
            columns[int(random.integers(len(columns)))] = pick(
                random, ("Path", "label ", "label", "path", "", "\x1b[2J", "x" * 3000)
            )
        elif how == "repeat":
            rows += [list(row) for _ in range(pick(random, (1, 50)))]
        elif how == "shorter":
            row[1:] = row[1 : int(random.integers(1, 3))] or [""]
            row += ["more"] * int(random.integers(0, 5))
        done.append(how)
    return [columns, *rows], ", ".join(done) or "valid"


def make(random: np.random.Generator, folder: Path) -> Input:
    """One manifest, given to the data set as a whole: read, split by its clients, summarised."""
    from shadow_defense.data.build import load_dataset
    from shadow_defense.data.settings import DataSettings, SplitSettings
    from shadow_defense.data.summary import summarise

    rows, what = _rows(random, images(folder))
    written = io.StringIO()
    dialect = pick(random, ({}, {}, {}, {"delimiter": ";"}, {"delimiter": "\t"}, {"quoting": csv.QUOTE_ALL}))
    csv.writer(written, **dialect).writerows(rows)
    encoding = pick(random, ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin1", "utf-32"))
    content = written.getvalue().encode(encoding, "replace")
    if random.random() < 0.15:
        content, change = change_bytes(random, content)
        what += f"; {change}"
    elif random.random() < 0.05:
        content += b'"' + b"x" * pick(random, (200_000, 10**7))
        what += "; an open quote"
    path = folder / "manifest.csv"
    path.write_bytes(content)
    if random.random() < 0.04:
        path = folder / pick(random, ("pipe.png", "folder.png", "loop.png", "dangling.png", "none.csv", "0.png"))
    kind = pick(random, ("given", "iid", "patient", "sizes"))
    split = SplitSettings(kind=kind, clients=2, sizes=(2, 2) if kind == "sizes" else None)
    settings = DataSettings(
        source="manifest", path=path, image_size=pick(random, (None, 8)), split=split,
        public_fraction=pick(random, (0, 0.3)), classes=pick(random, (None, None, ("a", "b"))),
    )  # fmt: skip

    def give() -> None:
        data = load_dataset(settings, 0)
        assert len(data.class_names) < 10_000
        summarise(data)

    return Input(f"{what}; {encoding} {dialect}, split {kind}, {path.name}", give)


def _prepare(_: Path) -> None:
    from PIL import Image

    Image.init()


DATA_SET = ("shadow_defense.data.build", "shadow_defense.data.summary")
KIND = Kind(make, DATA_SET, _prepare)
