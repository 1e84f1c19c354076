"""Columns of labels as data sets hand them out: what becomes a class, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shadow_defense.data.build import load_dataset
from shadow_defense.data.labels import check_class_names, read_labels
from shadow_defense.data.settings import DataSettings, SplitSettings
from shadow_defense.errors import DataError


def labels(given: list[str], classes: tuple[str, ...] | None = None) -> tuple[list[int], tuple[str, ...]]:
    return read_labels(given, [f"line {line}" for line in range(2, len(given) + 2)], classes)


def test_whole_numbers_however_they_are_written() -> None:
    indices, names = labels(["10.0", "2.0", "1", "0"])
    assert indices == [10, 2, 1, 0] and names == tuple(map(str, range(11)))
    assert labels(["1.0", "0.0"], ("fine", "sick")) == ([1, 0], ("fine", "sick"))


def test_names_that_are_given_are_taken_as_they_are() -> None:
    # What is refused when it is guessed may be meant.
    classes = ("-1", "a|b", "Normal", "normal")
    assert labels(["a|b", "normal", "-1", "Normal"], classes) == ([1, 3, 0, 2], classes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["1.0", "0.0", "-1.0"], r"line 4: label '-1\.0' is out of range.*give uncertain ones a class of their own"),
        (["0", "nan"], "line 3: no label"),
        (["nan", "0", "1"], "line 2: no label"),
        (["sick", "<NA>"], "line 3: no label"),
        (["0", "1.5"], r"line 3: label '1\.5' is out of range: expected a whole number from 0"),
        (["0", "9" * 5000], "line 3: label '9*…' is out of range"),
        (["2147483647", "0"], "line 2: label '2147483647' is out of range: expected a whole number from 0 below 1000"),
        (["0", "1e999"], "line 3: label '1e999' is out of range"),
        (["Effusion", "Atelectasis|Effusion"], r"line 3: label 'Atelectasis\|Effusion' names several findings"),
        (["Normal", "sick", "normal"], "'Normal' and 'normal' differ in case or spaces alone"),
        (["a\x1b[2J", "b"], r"line 2: label 'a\\x1b\[2J'"),
        ([f"image {index}" for index in range(11)], "each of 11 lines has a label of its own"),
        ([str(index) for index in range(11)], "each of 11 lines has a label of its own"),
    ],
)
def test_what_is_no_class_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        labels(given)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_more_classes_than_any_data_set_has() -> None:
    with pytest.raises(DataError, match="1001 classes: expected at most 1000"):
        check_class_names([str(number) for number in range(1001)], "here")


def test_a_class_that_no_image_has_is_noted(tmp_path: Path) -> None:
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels if index else np.zeros_like(pixels)).save(tmp_path / f"{index}.png")
    lines = "".join(f"{index}.png,{1 + index % 2}\n" for index in range(40))
    (tmp_path / "list.csv").write_text("path,label\n" + lines)
    settings = DataSettings(
        source="manifest", path=tmp_path / "list.csv", image_size=8, split=SplitSettings(kind="iid", clients=2)
    )
    notes = load_dataset(settings, 0).notes
    assert any(note.startswith("no training image is of class 0:") for note in notes)
    assert any(note.startswith("1 images have fewer than 32 of 256 grey levels, the first ") for note in notes)


def test_the_grey_range_reaches_every_reader_of_files(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b") * 10):
        (tmp_path / name).mkdir(exist_ok=True)
        values = np.random.default_rng(index).integers(0, 4096, (16, 16), dtype=np.uint16)
        values[0, 0], values[0, 1] = 0, 4095
        Image.fromarray(values).save(tmp_path / name / f"{index}.png")
    lines = "".join(f"{name}/{index}.png,{name}\n" for index, name in enumerate(("a", "b") * 10))
    (tmp_path / "list.csv").write_text("path,label\n" + lines)
    for source, path in (("image_folder", tmp_path), ("manifest", tmp_path / "list.csv")):
        settings = DataSettings(
            source=source, path=path, image_size=None, grey_range=(0, 4095), split=SplitSettings(kind="iid", clients=2)
        )
        images = load_dataset(settings, 0).test.images
        assert (images.amin((1, 2, 3)) == 0).all() and (images.amax((1, 2, 3)) == 255).all()
    with pytest.raises(DataError, match=r"source 'faces' takes no data\.grey_range"):
        load_dataset(DataSettings(source="faces", grey_range=(0, 4095)), 0)
    with pytest.raises(ValueError, match="black value first"):
        DataSettings(grey_range=(5, 5))
