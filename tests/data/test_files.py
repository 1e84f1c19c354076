"""Image folders and manifests: layout, ids, labels, parts, and the line or file that each error names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadow_defense.data import image_files
from shadow_defense.data.image_folder import read_image_folder
from shadow_defense.data.manifest import read_manifest
from shadow_defense.data.picture import read_picture
from shadow_defense.errors import DataError


def picture(path: Path, value: int = 0, side: int = 8, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), value if mode == "L" else (value, 0, 0)).save(path)


def folder(root: Path, **options: Any) -> Any:
    return read_image_folder(**{"path": root, "image_size": 8, "channels": None, **options})


def manifest(root: Path, text: str, **options: Any) -> Any:
    (root / "list.csv").write_text(text, encoding="utf-8")
    return read_manifest(**{"path": root / "list.csv", "image_size": 8, "channels": None, **options})


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        for label, name in enumerate(("normal", "sick")):
            for index in range(count):
                picture(tmp_path / part / name / f"{index}.png", 100 * label + index)
    return tmp_path


def test_folder_with_splits(two_classes: Path) -> None:
    (two_classes / ".DS_Store").write_text("")
    (two_classes / "train" / "sick" / "Thumbs.db").write_text("")
    parts = folder(two_classes)
    assert parts.class_names == ("normal", "sick") and parts.train.groups is None
    assert parts.train.sample_ids[-1] == "train/sick/3.png"
    # The brightness tells which file it was: image and label must not come apart.
    assert parts.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert parts.train.labels.tolist() == [0] * 4 + [1] * 4
    assert len(parts.validation) == 4 and len(parts.test) == 2
    turned = folder(two_classes, classes=("sick", "normal"))
    assert turned.class_names == ("sick", "normal") and turned.train.labels.tolist() == [1] * 4 + [0] * 4


def test_folder_without_splits_leaves_the_test_to_be_cut(two_classes: Path) -> None:
    parts = folder(two_classes / "train")
    assert len(parts.train) == 8 and parts.test is None and parts.train.sample_ids[0] == "normal/0.png"


def test_images_below_a_class_folder_are_taken_and_masks_beside_them_are_not(two_classes: Path) -> None:
    """The layout of the COVID-19 Radiography Database: class/images/*.png beside class/masks/*.png."""
    plain = folder(two_classes)
    for place in [each for part in two_classes.iterdir() for each in part.iterdir()]:
        files = list(place.iterdir())
        for inside in ("images", "masks"):
            (place / inside).mkdir()
        for file in files:
            (place / "masks" / file.name).write_bytes(b"")
            file.rename(place / "images" / file.name)
    below = folder(two_classes)
    assert below.class_names == plain.class_names and torch.equal(below.train.images, plain.train.images)
    assert below.train.sample_ids[0] == "train/normal/images/0.png"


def test_files_that_did_not_change_are_decoded_once(two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seed of a study deals the same files, and thousands take a minute."""
    opened: list[str] = []

    def counted(path: Path, *given: Any) -> Any:
        opened.append(f"{path.parent.name}/{path.name}")
        return read_picture(path, *given)

    monkeypatch.setattr(image_files, "read_picture", counted)
    first = folder(two_classes, seed=1)
    assert len(opened) == 14
    assert torch.equal(folder(two_classes, seed=2).train.images, first.train.images) and len(opened) == 14
    first.train.images.zero_()
    assert folder(two_classes).train.images[-1, 0, 0, 0] == 103
    picture(two_classes / "train" / "sick" / "3.png", 7)
    assert folder(two_classes).train.images[-1, 0, 0, 0] == 7 and len(opened) == 28
    folder(two_classes, image_size=4)
    assert len(opened) == 42
    monkeypatch.setattr(image_files, "KEPT_BYTES", 0)
    folder(two_classes), folder(two_classes)
    assert len(opened) == 70


@pytest.mark.parametrize("inside", [".", "train"])
def test_the_folder_that_an_archive_had_around_all_is_gone_into(
    two_classes: Path, tmp_path_factory: pytest.TempPathFactory, inside: str
) -> None:
    plain, root = folder(two_classes / inside), tmp_path_factory.mktemp("unpacked")
    shutil.copytree(two_classes / inside, root / "set")
    (root / "__MACOSX").mkdir()
    below = folder(root)
    assert below.class_names == plain.class_names and torch.equal(below.train.images, plain.train.images)
    assert list(below.train.sample_ids) == [f"set/{name}" for name in plain.train.sample_ids]


def test_one_class_with_pictures_and_masks_is_no_set(tmp_path: Path) -> None:
    for inside in ("images", "masks"):
        picture(tmp_path / "sick" / inside / "0.png")
    with pytest.raises(DataError, match="has 1 class folders: expected two at least"):
        folder(tmp_path)


def test_limit_opens_only_a_balanced_sample(two_classes: Path) -> None:
    for index in range(20):
        picture(two_classes / "train" / "sick" / f"{index}.png", 100)
    parts = folder(two_classes, limit=4)
    assert parts.train.labels.tolist() == [0, 0, 1, 1] and len(parts.validation) == 4
    again = folder(two_classes, limit=4)
    assert again.train.sample_ids == parts.train.sample_ids
    assert folder(two_classes, limit=4, seed=1).train.sample_ids != parts.train.sample_ids


def test_one_colour_file_makes_the_set_colour_unless_told_otherwise(two_classes: Path) -> None:
    picture(two_classes / "train" / "sick" / "red.png", 255, mode="RGB")
    assert folder(two_classes).train.images.shape == (9, 3, 8, 8)
    assert folder(two_classes, channels=1).train.images.shape == (9, 1, 8, 8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train" / "empty").mkdir(), "empty holds no images: expected .png"),
        (lambda root: (root / "test" / "unsure").mkdir(), "unknown class 'unsure'"),
        (lambda root: (root / "other").mkdir(), "other stands among split folders"),
        (lambda root: (root / "train").rename(root / "validation"), "has no folder 'train'"),
        (lambda root: (root / "train" / "sick" / "9.jpeg").write_bytes(b"\xff\xd8\xff"), r"sick/9\.jpeg"),
    ],
)
def test_spoilt_folders_are_named(two_classes: Path, spoil: Any, message: str) -> None:
    spoil(two_classes)
    with pytest.raises(DataError, match=message) as caught:
        folder(two_classes)
    assert "\n" not in str(caught.value)


def test_folders_that_are_none(two_classes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder: correct data\.path"):
        folder(two_classes / "nowhere")
    with pytest.raises(DataError, match="0 class folders"):
        folder(two_classes / "train" / "sick")
    picture(two_classes / "train" / "sick" / "large.png", side=9)
    with pytest.raises(DataError, match=r"large\.png has 9 x 9 pixels.*set data\.image_size"):
        folder(two_classes, image_size=None)


CSV = """path,label,client,split,patient
a/0.png,0,A,train,p1
a/1.png,1,B,train,p2
b/2.png,1,,test,
b/3.png,0,,public,p3
"""


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    for index, name in enumerate(("a/0.png", "a/1.png", "b/2.png", "b/3.png")):
        picture(tmp_path / name, index)
    return tmp_path


def test_manifest_with_all_columns(listed: Path) -> None:
    parts = manifest(listed, CSV)
    assert parts.clients == ("A", "B") and parts.train.groups == ("p1", "p2")
    assert parts.train.images[:, 0, 0, 0].tolist() == [0, 1] and parts.train.labels.tolist() == [0, 1]
    assert parts.test.sample_ids == ("b/2.png",) and parts.test.groups == ("file:b/2.png",)
    assert parts.public.sample_ids == ("b/3.png",) and parts.validation is None


def test_manifest_with_names_a_byte_order_mark_and_only_two_columns(listed: Path) -> None:
    parts = manifest(listed, "\ufefflabel, path\nsick, a/0.png\nfine, a/1.png\n")
    assert parts.class_names == ("fine", "sick") and parts.train.labels.tolist() == [1, 0]
    assert parts.clients is None and parts.train.groups is None and parts.test is None
    ordered = manifest(listed, "label,path\nsick,a/0.png\nfine,a/1.png\n", classes=("sick", "fine"))
    assert ordered.train.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,class\na/0.png,0\n", {}, r"list\.csv line 1: no column 'label'"),
        ("", {}, r"list\.csv line 1: no column 'path'"),
        ("path,label\n", {}, r"list\.csv lists no images"),
        ("path,label\na/0.png,0\na/9.png,1\n", {}, r"line 3: .*a/9\.png does not exist"),
        ("path,label\na/0.png,0\na/1.png,-1\n", {}, r"line 3: label '-1' is out of range"),
        (
            "path,label\na/0.png,0\na/1.png,2\n",
            {"classes": ("x", "y")},
            r"line 3: label '2' is out of range: expected 0 to 1",
        ),
        ("path,label\na/0.png,x\na/1.png,z\n", {"classes": ("x", "y")}, r"line 3: unknown label 'z'"),
        ("path,label\na/0.png,0\na/1.png,\n", {}, r"line 3: no label"),
        (
            "path,label,split\na/0.png,0,train\na/1.png,1,tset\n",
            {},
            r"line 3: unknown split 'tset': did you mean 'test'",
        ),
        ("path,label,client\na/0.png,0,A\na/1.png,1,\n", {}, r"line 3: no client"),
        ("path,label\na/0.png,0\na/0.png,1\n", {}, r"line 3: 'a/0\.png' stands in .*line 2 too"),
        ("path,label\na/0.png,0\nlist.csv,1\n", {}, r"line 3: 'list\.csv' is no image"),
        (
            "path,label,client,split\na/0.png,0,A,train\na/1.png,1,B,test\n",
            {},
            r"line 3: client 'B' has no images to train",
        ),
        ("path,label,split\na/0.png,0,test\na/1.png,1,test\n", {}, "no training images"),
    ],
)
def test_wrong_lines_are_named(listed: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        manifest(listed, text, **options)
    assert "\n" not in str(caught.value)


def test_missing_or_binary_manifest(listed: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        read_manifest(path=listed / "nowhere.csv", image_size=8, channels=None)
    (listed / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=r"binary\.csv"):
        read_manifest(path=listed / "binary.csv", image_size=8, channels=None)


@pytest.mark.slow
def test_real_folder_equals_its_files(shared_data: Path) -> None:
    root = shared_data / "cxr_kermany_224"
    parts = read_image_folder(path=root, image_size=None, channels=1, limit=12)
    assert len(parts.train) == 12 and len(parts.test) == 624 and parts.class_names == ("NORMAL", "PNEUMONIA")
    for index in range(12):
        with Image.open(root / parts.train.sample_ids[index]) as file:
            reference = np.asarray(file.convert("L"))
        assert np.abs(parts.train.images[index, 0].numpy().astype(int) - reference).max() <= 1
