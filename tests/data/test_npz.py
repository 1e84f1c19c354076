"""The MedMNIST layout: real files, both label shapes, and every way in which a file can be wrong."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shadow_defense.data.duplicates import count_shared
from shadow_defense.data.medmnist import read_medmnist
from shadow_defense.data.medmnist_classes import MEDMNIST_CLASSES
from shadow_defense.data.npz import read_npz
from shadow_defense.errors import DataError


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    content = {
        "train_images": random.integers(0, 256, (6, 8, 8), dtype=np.uint8),
        "train_labels": np.array([0, 1, 0, 1, 0, 1]),
        "test_images": random.integers(0, 256, (2, 8, 8), dtype=np.uint8),
        "test_labels": np.array([[0], [1]]),
    }
    content.update(changes)
    return {name: array for name, array in content.items() if array is not None}


def write(folder: Path, **changes: Any) -> Path:
    np.savez_compressed(folder / "set.npz", **arrays(**changes))
    return folder / "set.npz"


def read(path: Path, **options: Any) -> Any:
    return read_npz(**{"path": path, "image_size": None, "channels": None, **options})


def test_bytes_come_back_unchanged_and_validation_is_optional(tmp_path: Path) -> None:
    content = arrays()
    parts = read(write(tmp_path))
    assert np.array_equal(parts.train.images[:, 0].numpy(), content["train_images"])
    assert parts.train.labels.tolist() == [0, 1, 0, 1, 0, 1] and parts.test.labels.tolist() == [0, 1]
    assert parts.validation is None and parts.train.groups is None
    assert parts.train.sample_ids[2] == "train/2" and parts.class_names == ("0", "1")


def test_floats_are_scaled_and_groups_are_kept(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        train_images=np.full((6, 8, 8, 3), 0.2),
        test_images=np.ones((2, 8, 8, 3), np.float32),
        train_groups=np.array(list("aabbcc")),
    )
    parts = read(path)
    assert parts.train.images.unique().tolist() == [51] and parts.test.images.unique().tolist() == [255]
    assert parts.train.groups == tuple("aabbcc") and parts.train.channels == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.full((6, 8, 8), np.nan)}, "train_images, image 0: NaN"),
        ({"train_images": np.full((6, 8, 8), 3.0)}, r"train_images, image 0: values outside \[0, 1\]"),
        ({"train_images": np.zeros((6, 8, 8), np.int32)}, "train_images: int32"),
        ({"train_images": np.zeros((6, 8), np.uint8)}, r"train_images: shape \(6, 8\)"),
        ({"train_labels": np.array([0, 1, 0, 1, 0])}, "6 train_images but 5 train_labels"),
        ({"train_labels": np.zeros((6, 14))}, r"train_labels: float64 of shape \(6, 14\)"),
        ({"train_labels": np.array([0, 1, 0, -1, 0, 1])}, "train_labels: label -1 of image 3 is out of range"),
        ({"test_labels": None}, "no array 'test_labels'"),
        ({"train_images": None, "train_labels": None}, "no array 'train_images'"),
        ({"train_groups": np.array(["a"])}, "6 train_images but 1 train_groups"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"set\.npz.*{message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_label_beyond_the_given_classes(tmp_path: Path) -> None:
    path = write(tmp_path, test_labels=np.array([0, 2]))
    with pytest.raises(DataError, match="label 2 of image 1 is out of range: expected 0 to 1"):
        read(path, classes=("healthy", "ill"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"set\.npz"):
            read(path)
    # A flipped byte in the middle of the compressed pixels: the archive opens, its checksum fails.
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    with pytest.raises(DataError, match=r"set\.npz"):
        read(path)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"bare\.npy holds one bare array"):
        read(tmp_path / "bare.npy")
    with pytest.raises(DataError, match=r"nowhere\.npz does not exist"):
        read(tmp_path / "nowhere.npz")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, train_groups=np.array([{}] * 6, dtype=object))
    with pytest.raises(DataError, match=r"set\.npz"):
        read(path)


def test_real_medmnist_files(shared_data: Path) -> None:
    folder = shared_data / "medmnist"
    breast = read_medmnist(source="breastmnist", path=folder / "breastmnist.npz", image_size=None, channels=None)
    assert [len(breast.train), len(breast.validation), len(breast.test)] == [546, 78, 156]
    assert breast.class_names == ("malignant", "normal or benign")
    retina = read_medmnist(source="retinamnist", path=folder / "retinamnist.npz", image_size=32, channels=None)
    assert retina.train.images.shape == (1080, 3, 32, 32) and len(retina.class_names) == 5
    with np.load(folder / "retinamnist.npz") as archive:
        assert retina.train.labels.tolist() == archive["train_labels"][:, 0].tolist()
    lungs = read_medmnist(source="pneumoniamnist", path=folder / "pneumoniamnist.npz", image_size=None, channels=3)
    assert lungs.train.images.shape == (4708, 3, 28, 28)
    # Known of this file: eight images stand in both parts.
    assert count_shared(lungs.validation.images, lungs.train.images) == 8


def test_missing_package_asks_for_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError, match=r"package medmnist.*data\.path"):
        read_medmnist(source="pneumoniamnist", image_size=28, channels=None)


def test_failed_and_good_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    class Good:
        def __init__(self, split: str, download: bool, root: str, size: int) -> None:
            asked.append(size)
            np.savez(Path(root) / f"pneumoniamnist_{size}.npz", **arrays())

    class Offline:
        def __init__(self, **_: Any) -> None:
            raise RuntimeError("Something went wrong when downloading!")

    package = types.ModuleType("medmnist")
    package.INFO = {"pneumoniamnist": {"python_class": "PneumoniaMNIST"}}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medmnist", package)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(DataError, match=r"with torchvision.*data\.path"):
        read_medmnist(source="pneumoniamnist", image_size=28, channels=None)
    package.PneumoniaMNIST = Offline  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"could not download 'pneumoniamnist'.*data\.path"):
        read_medmnist(source="pneumoniamnist", image_size=28, channels=None)
    package.PneumoniaMNIST = Good  # type: ignore[attr-defined]
    parts = read_medmnist(source="pneumoniamnist", image_size=48, channels=None)
    assert asked == [64] and parts.train.images.shape == (6, 1, 48, 48)
    assert torch.equal(parts.train.labels, torch.tensor([0, 1, 0, 1, 0, 1]))


def test_class_names_have_no_doubles() -> None:
    assert all(len(set(names)) == len(names) for names in MEDMNIST_CLASSES.values())
    assert {name: len(names) for name, names in MEDMNIST_CLASSES.items()} == {
        "bloodmnist": 8,
        "breastmnist": 2,
        "dermamnist": 7,
        "octmnist": 4,
        "organamnist": 11,
        "organcmnist": 11,
        "organsmnist": 11,
        "pathmnist": 9,
        "pneumoniamnist": 2,
        "retinamnist": 5,
        "tissuemnist": 8,
    }
