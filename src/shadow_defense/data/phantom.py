"""What the drawn images share: random anatomy per image, supersampled drawing, and the data set around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.images import to_channels
from shadow_defense.errors import DataError
from shadow_defense.seeds import seed_for

DEFAULT_SIZE = 64
# Thin ribs and vessels alias when drawn directly at 32 px: drawn at least this large, then averaged down.
DRAWN_SIDE = 112
# As many as are drawn at once, in pixels: each takes some hundred bytes while it is drawn.
CHUNK_PIXELS = 64 * DRAWN_SIDE**2
MOST_PIXELS = 10**9

Column = Float32[np.ndarray, "n 1 1"]
Anatomy = Mapping[str, Column]
AcrossAxis = Float32[np.ndarray, "1 1 w"]
DownAxis = Float32[np.ndarray, "1 h 1"]
# Anatomy, diseased or not, both axes -> brightness (n, c, h, w) in [0, 1] and lesion mask (n, h, w).
Draw = Callable[[Anatomy, Column, AcrossAxis, DownAxis], tuple[Any, Any]]


def read_phantom(
    draw: Draw,
    ranges: Mapping[str, tuple[float, float]],
    name: str,
    class_names: tuple[str, ...],
    *,
    images: int,
    image_size: int | None,
    channels: int | None,
    seed: int,
) -> Parts:
    """``images`` drawn images, every second one (label 1) with a lesion; nothing is set aside.

    Image ``i`` depends on ``seed`` and ``i`` alone. Its anatomy does not depend on the size.

    Raises:
        DataError: for more pixels than fit in memory.
    """
    size = image_size or DEFAULT_SIZE
    if images * size * size > MOST_PIXELS:
        raise DataError(f"data.images {images} of {size} pixels a side: expected 10^9 pixels in all at most")
    pixels, masks = [], []
    together = max(1, CHUNK_PIXELS // max(size, DRAWN_SIDE) ** 2)
    for start in range(0, images, together):
        indices = range(start, min(start + together, images))
        chunk, mask = draw_images(draw, ranges, name, list(indices), size, seed)
        pixels.append(torch.from_numpy(chunk))
        masks.append(torch.from_numpy(mask))
    drawn = torch.cat(pixels)
    return Parts(
        ImageSet(
            images=drawn if channels is None else to_channels(drawn, channels),
            labels=torch.arange(images) % 2,
            sample_ids=tuple(f"{name}/{index}" for index in range(images)),
            masks=torch.cat(masks),
        ),
        None,
        None,
        class_names,
    )


def draw_images(
    draw: Draw, ranges: Mapping[str, tuple[float, float]], name: str, indices: list[int], size: int, seed: int
) -> tuple[UInt8[np.ndarray, "n c s s"], Bool[np.ndarray, "n s s"]]:
    """The images ``indices`` of a phantom and their lesion masks: true where any part of a pixel is lesion."""
    generators = [np.random.default_rng(seed_for(seed, name, index)) for index in indices]
    uniform = np.stack([generator.random(len(ranges), dtype=np.float32) for generator in generators])
    anatomy = {
        feature: (low + (high - low) * uniform[:, column])[:, None, None]
        for column, (feature, (low, high)) in enumerate(ranges.items())
    }
    diseased = (np.array(indices, dtype=np.float32) % 2)[:, None, None]
    factor = -(-DRAWN_SIDE // size)
    ticks = (np.arange(size * factor, dtype=np.float32) + 0.5) * (2 / (size * factor)) - 1
    light, lesion = draw(anatomy, diseased, ticks[None, None, :], ticks[None, :, None])
    count, channels = light.shape[:2]
    light = light.reshape(count, channels, size, factor, size, factor).mean(axis=(3, 5))
    mask = lesion.reshape(count, size, factor, size, factor).any(axis=(2, 4))
    # Sensor noise belongs to the pixel, so it is added at the final size.
    noise = np.stack([generator.standard_normal((channels, size, size), dtype=np.float32) for generator in generators])
    noisy = light + anatomy["noise"][:, None] * noise
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8), mask


def edge(distance: Float[np.ndarray, "..."], softness: float) -> Float[np.ndarray, "..."]:
    """A soft step: 0 far below zero, 1 far above, with a transition of about ``softness``."""
    return 0.5 + 0.5 * np.tanh(distance / softness)


def bump(distance: Float[np.ndarray, "..."], width: Any) -> Float[np.ndarray, "..."]:
    """A Gaussian of standard deviation ``width``."""
    return np.exp(-0.5 * np.square(distance / width))


def spot(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."], radius: Any, lobes: Any) -> Float[np.ndarray, "..."]:
    """A blob of irregular outline around the origin: 1 inside, falling to exactly 0 at the outline."""
    angle = np.arctan2(y, x)
    outline = radius * (1 + 0.18 * np.cos(2 * angle + lobes) + 0.12 * np.cos(3 * angle + 2.3 * lobes))
    return np.sqrt(np.clip(1 - (x * x + y * y) / np.square(outline), 0, 1))
