"""Public images: folders of any layout, archives, named sources, and what is said when there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shadow_defense.data.public import read_public_images
from shadow_defense.errors import DataError


def read(where: object, **options: Any) -> torch.Tensor:
    return read_public_images(
        str(where), **{"image_size": 8, "channels": None, "limit": None, "seed": 0, **options}
    ).images


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def test_every_image_below_a_folder_counts_whatever_the_layout(tmp_path: Path) -> None:
    picture(tmp_path / "flat.png", 1)
    picture(tmp_path / "one" / "class" / "deep.png", 2)
    picture(tmp_path / "two" / "other.tif", 3)
    (tmp_path / "notes.txt").write_text("no image")
    assert sorted(read(tmp_path)[:, 0, 0, 0].tolist()) == [1, 2, 3]


def test_archive_gives_its_training_images(tmp_path: Path) -> None:
    images = np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=[0, 1, 0, 1])
    assert read(tmp_path / "set.npz")[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_limit_draws_a_repeatable_sample_without_repeats(tmp_path: Path) -> None:
    for value in range(20):
        picture(tmp_path / f"{value}.png", value)
    first, again, other = (read(tmp_path, limit=6, seed=seed)[:, 0, 0, 0].tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 6


def test_named_source_in_the_wanted_form() -> None:
    assert read("faces", image_size=16, channels=3, limit=5).shape == (5, 3, 16, 16)


@pytest.mark.parametrize(
    ("where", "message"),
    [("nowhere", "no images at 'nowhere': give a folder"), (".", "holds no images: expected .png")],
)
def test_no_images_is_said_with_what_to_give(
    where: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        read(where)
