"""Patches of a real fundus photograph in colour, which comes with scikit-image."""

from __future__ import annotations

import torch

from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.grey_levels import unit_to_bytes
from shadow_defense.data.images import prepare

SIDE = 80
"""Of a patch in the photograph of 1411 x 1411 pixels; patches do not overlap."""

DARK = 0.1
"""A patch with a pixel whose channels are all below it touches the black rim."""


def read_fundus(*, image_size: int | None, channels: int | None) -> Parts:
    """Patches of one eye, whole ones alone; label 1 has more vessels than half of them.

    By the deviation of the green channel, in which vessels stand out most. The file lies in scikit-image's wheel
    (``skimage.data.retina``), so nothing is fetched. All are of one patient, hence no groups.
    """
    from skimage.data import retina

    photograph = torch.from_numpy(retina()).permute(2, 0, 1)
    patches = photograph.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).flatten(0, 1)
    light = patches.float() / 255
    whole = light[(light.amax(dim=1) >= DARK).flatten(1).all(dim=1)]
    contrast = whole[:, 1].flatten(1).std(dim=1)
    images = prepare(torch.from_numpy(unit_to_bytes(whole.numpy(), "skimage.data.retina()")), image_size, channels)
    names = tuple(f"fundus/{index}" for index in range(len(images)))
    return Parts(ImageSet(images, (contrast > contrast.median()).long(), names), None, None, ("few vessels", "vessels"))
