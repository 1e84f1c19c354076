"""Images side by side in one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.data.images import as_bytes
from shadow_defense.files import atomic_path


def image_grid(images: Float[Tensor, "n c h w"], columns: int) -> UInt8[np.ndarray, "rows cols 3"]:
    """Tile images in [0, 1] row by row with a two-pixel white gap; grey becomes colour."""
    bytes_ = as_bytes(images.detach()).permute(0, 2, 3, 1).cpu().numpy()
    if bytes_.shape[-1] == 1:
        bytes_ = bytes_.repeat(3, axis=-1)
    count, height, width, _ = bytes_.shape
    rows = -(-count // columns)
    gap = 2
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(bytes_):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def save_grid(path: Path, images: Float[Tensor, "n c h w"], columns: int = 8) -> None:
    """Write :func:`image_grid` as a PNG, at least 64 pixels an image so that small ones can be seen."""
    from PIL import Image

    picture = Image.fromarray(image_grid(images, columns))
    scale = max(1, -(-64 // images.shape[-1]))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with atomic_path(path) as temporary:
        picture.save(temporary)
