"""Tensors as pictures in a page: PNG data URIs, heat laid over an image, and signed noise in two colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.errors import DataError

# Both are perceptually ordered: lightness alone tells the value, to colour-blind readers and in grey print too.
HEAT_TABLE = "inferno"
SIGNED_TABLE = "RdBu_r"

HEAT_OPACITY = 0.6

# A few extreme pixels would otherwise leave the rest of a noise map pale.
NOISE_QUANTILE = 0.99


LEAST_WIDTH = 160
"""In CSS pixels; small pictures are enlarged to it by whole factors, so that each pixel is a square."""

LARGEST_ENLARGED = 64


@dataclass(frozen=True)
class Picture:
    """One image of the page: its data URI, what it is called, the lines below it, and its size in CSS pixels.

    Attributes:
        pixelated: whether its pixels are kept as squares.
    """

    source: str
    title: str
    alt: str
    lines: tuple[str, ...]
    width: int
    height: int
    pixelated: bool


def picture(
    image: Float[Tensor, "c h w"] | UInt8[np.ndarray, "h w c"],
    title: str,
    alt: str,
    *lines: str,
    least: int = LEAST_WIDTH,
) -> Picture:
    """An image in [0, 1], or the pixels of one that was coloured, ready for a page; ``least``: its width at least.

    Raises:
        DataError: when the image has neither one nor three channels.

    >>> shown = picture(torch.zeros(1, 20, 25), "Original", "An image")
    >>> shown.width, shown.height, shown.pixelated
    (175, 140, True)
    >>> shown = picture(torch.zeros(1, 224, 224), "Original", "An image")
    >>> shown.width, shown.height, shown.pixelated
    (160, 160, False)
    """
    drawn = pixels(image) if isinstance(image, Tensor) else image
    height, width, _ = drawn.shape
    pixelated = width <= LARGEST_ENLARGED
    shown = width * -(-least // width) if pixelated else least
    return Picture(png_data_uri(drawn), title, alt, lines, shown, round(height * shown / width), pixelated)


def pixels(image: Float[Tensor, "c h w"]) -> UInt8[np.ndarray, "h w c"]:
    """Bytes of a grey (1 channel) or colour (3 channels) image in [0, 1], clamped; NaN is drawn black.

    Raises:
        DataError: on any other number of channels.

    >>> pixels(torch.tensor([[[0.0, 0.5, 1.5]]])).ravel().tolist()
    [0, 128, 255]
    """
    if image.shape[0] not in (1, 3):
        raise DataError(f"an image of {image.shape[0]} channels cannot be drawn: give 1 (grey) or 3 (colour)")
    scaled = image.detach().cpu().float().nan_to_num(nan=0.0).clamp(0, 1) * 255
    return np.ascontiguousarray(scaled.round().byte().permute(1, 2, 0).numpy())


def png_data_uri(picture: UInt8[np.ndarray, "h w c"]) -> str:
    """A ``data:image/png;base64,`` URI of a grey or colour picture, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def heat_overlay(original: Float[Tensor, "c h w"], heat: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A map in [0, 1] in the colours of :data:`HEAT_TABLE`, laid over the image in grey.

    ``(1 - a) grey + a colour(heat)`` with a = :data:`HEAT_OPACITY`; grey is the mean of the channels, so that all
    colour in the picture is the map's.
    """
    grey = pixels(original).mean(axis=2, keepdims=True) / 255
    colours = _coloured(HEAT_TABLE, heat.detach().cpu().float().nan_to_num(nan=0.0).clamp(0, 1))
    mixed = (1 - HEAT_OPACITY) * grey + HEAT_OPACITY * colours
    return (mixed * 255).round().astype(np.uint8)


def signed_picture(noise: Float[Tensor, "c h w"], limit: float) -> UInt8[np.ndarray, "h w 3"]:
    """Signed noise in the colours of :data:`SIGNED_TABLE`: white is 0, full blue -limit, full red +limit.

    Of several channels each pixel shows the one with the largest magnitude: a mean would let noise of opposite
    signs vanish from the picture.

    >>> signed_picture(torch.tensor([[[-1.0, 0.0, 1.0]]]), limit=1.0)[0].tolist()
    [[5, 48, 97], [247, 246, 246], [103, 0, 31]]
    """
    values = noise.detach().cpu().float().nan_to_num(nan=0.0)
    largest = values.gather(0, values.abs().argmax(dim=0, keepdim=True))[0]
    return (_coloured(SIGNED_TABLE, (largest / (2 * limit) + 0.5).clamp(0, 1)) * 255).round().astype(np.uint8)


def noise_limit(noises: Sequence[Float[Tensor, "c h w"]]) -> float:
    """The magnitude at which the noise colours saturate: the 99 % quantile over all of ``noises``, shared by them.

    >>> round(noise_limit([torch.full((1, 2, 2), -0.2), torch.zeros(1, 2, 2)]), 6)
    0.2
    """
    magnitudes = torch.cat([noise.detach().cpu().double().flatten().abs() for noise in noises]).numpy()
    limit = float(np.quantile(magnitudes, NOISE_QUANTILE)) or float(magnitudes.max())
    return limit or 1.0


def colour_bar(table: str) -> str:
    """A colour table from left (lowest) to right (highest), one pixel high, as a PNG data URI."""
    return png_data_uri((_coloured(table, torch.linspace(0, 1, 128)[None]) * 255).round().astype(np.uint8))


def heat_bar() -> str:
    """The colours of :func:`heat_overlay` over mid grey, from 0 (left) to 1 (right), as a PNG data URI."""
    return png_data_uri(heat_overlay(torch.full((1, 1, 128), 0.5), torch.linspace(0, 1, 128)[None]))


def _coloured(table: str, values: Float[Tensor, "h w"]) -> Float[np.ndarray, "h w 3"]:
    import matplotlib

    return np.asarray(matplotlib.colormaps[table](values.numpy()))[:, :, :3]
