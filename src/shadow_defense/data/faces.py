"""The bundled source: scikit-image's crops of faces and of background, for a first run without any download."""

from __future__ import annotations

import torch

from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.grey_levels import unit_to_bytes
from shadow_defense.data.images import prepare


def read_faces(*, image_size: int | None, channels: int | None) -> Parts:
    """100 faces (label 1) and 100 other crops (label 0), 25 x 25 grey, from Labeled Faces in the Wild.

    The file lies in scikit-image's wheel (``skimage.data.lfw_subset``), so nothing is fetched. Nobody is named,
    hence no groups. A face shows a rebuilt image's harm at a glance, which is why this set is the default.
    """
    from skimage.data import lfw_subset

    crops = unit_to_bytes(lfw_subset(), "skimage.data.lfw_subset()")
    images = prepare(torch.from_numpy(crops)[:, None], image_size, channels)
    # The file's order: first the hundred faces, then the hundred others.
    labels = (torch.arange(len(images)) < 100).long()
    names = tuple(f"faces/{index}" for index in range(len(images)))
    return Parts(ImageSet(images, labels, names), None, None, ("other", "face"))
