"""Drawn images: repeatable one by one, lesions exactly where their masks say, different from each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shadow_defense.data import phantom_chest, phantom_fundus
from shadow_defense.data.phantom import draw_images

CHEST = (phantom_chest.draw_chest, phantom_chest.ANATOMY, "chest", phantom_chest.chest_phantom, 1)
FUNDUS = (phantom_fundus.draw_fundus, phantom_fundus.ANATOMY, "fundus", phantom_fundus.fundus_phantom, 3)
both = pytest.mark.parametrize(("draw", "ranges", "name", "read", "channels"), [CHEST, FUNDUS], ids=["chest", "fundus"])


@both
def test_an_image_depends_on_seed_and_index_alone(draw: Any, ranges: Any, name: str, read: Any, channels: int) -> None:
    few = read(images=9, image_size=32, channels=None, seed=3).train
    many = read(images=70, image_size=32, channels=None, seed=3).train
    assert torch.equal(few.images, many.images[:9]) and torch.equal(few.masks, many.masks[:9])
    alone, mask = draw_images(draw, ranges, name, [7], 32, 3)
    assert np.array_equal(alone[0], few.images[7].numpy()) and np.array_equal(mask[0], few.masks[7].numpy())
    assert not torch.equal(few.images, read(images=9, image_size=32, channels=None, seed=4).train.images)
    assert few.channels == channels and few.labels.tolist() == [0, 1] * 4 + [0]
    assert few.sample_ids[0] == f"{name}/0"


@both
@pytest.mark.parametrize("size", [32, 64, 224])
def test_masks_are_exact(draw: Any, ranges: Any, name: str, read: Any, channels: int, size: int) -> None:
    indices = list(range(1, 25, 2))
    random = np.random.default_rng(0)
    anatomy = {
        feature: random.uniform(low, high, (12, 1, 1)).astype(np.float32) for feature, (low, high) in ranges.items()
    }
    ticks = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size)) - 1
    grid = (ticks[None, None, :], ticks[None, :, None])
    ill, lesion = draw(anatomy, np.ones((12, 1, 1), np.float32), *grid)
    healthy, nothing = draw(anatomy, np.zeros((12, 1, 1), np.float32), *grid)
    change = np.abs(ill - healthy).max(axis=1)
    assert not nothing.any()
    assert (change[~lesion] == 0).all()
    # Nearly every pixel of the mask changes visibly: it is the lesion, not a box around it.
    assert (change[lesion] > 1 / 255).mean() > 0.9
    drawn, masks = draw_images(draw, ranges, name, indices, size, 5)
    share = masks.mean(axis=(1, 2))
    assert (share > 0.004).all() and (share < 0.15).all() and drawn.shape == (12, channels, size, size)


@both
def test_images_differ_and_use_the_range(draw: Any, ranges: Any, name: str, read: Any, channels: int) -> None:
    images = read(images=40, image_size=64, channels=1, seed=0).train.unit_images()
    flat = images.flatten(1)
    distance = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    distance.fill_diagonal_(1)
    # Root mean square difference of the two most alike: well above their noise of about 0.02.
    assert distance.min() > 0.03
    assert (flat.std(dim=1) > 0.08).all() and (flat.amax(1) > 0.35).all()
    # Saturated pixels hide structure; dark borders are part of both kinds of image.
    assert ((flat == 1).float().mean(dim=1) < 0.1).all()


@both
def test_a_size_changes_the_sampling_and_not_the_anatomy(
    draw: Any, ranges: Any, name: str, read: Any, channels: int
) -> None:
    small, large = (read(images=6, image_size=size, channels=1, seed=0).train.unit_images() for size in (56, 112))
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    for one, other in zip(small, shrunk, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.98
