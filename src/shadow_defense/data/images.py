"""Images as bytes in (n, channels, height, width): square crops, resizing, grey and colour."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from shadow_defense.data.picture import read_picture
from shadow_defense.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

# ITU-R BT.601, the weights that JPEG and Pillow use: a file and an array of the same image give the same grey.
LUMINANCE = (0.299, 0.587, 0.114)


def crop_square(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c s s"]:
    """The central square of each image.

    Squeezing to a square instead would change the shape of organs (a heart drawn wide reads as disease); what
    is lost is the border of the longer side, and an odd row or column more is lost at the bottom or right.

    >>> crop_square(torch.zeros(1, 1, 4, 7, dtype=torch.uint8)).shape
    torch.Size([1, 1, 4, 4])
    """
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def resize_square(images: UInt8[Tensor, "n c h w"], size: int) -> UInt8[Tensor, "n c s s"]:
    """Crop to the central square, then resize to ``size`` pixels a side: bicubic, anti-aliased when shrinking."""
    square = crop_square(images)
    if square.shape[2] == size:
        return square.contiguous()
    # In chunks, so that the working memory does not grow with the data set.
    resized = [
        F.interpolate(chunk, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        for chunk in square.split(512)
    ]
    return torch.cat(resized) if resized else square.new_zeros(0, square.shape[1], size, size)


def to_channels(images: UInt8[Tensor, "n c h w"], channels: int) -> UInt8[Tensor, "n {channels} h w"]:
    """Grey to colour by repetition, colour to grey by luminance; nothing is done where the number fits.

    >>> to_channels(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1), 1).item()
    76
    """
    given = images.shape[1]
    if given == channels:
        return images
    if (given, channels) == (1, 3):
        return images.repeat(1, 3, 1, 1)
    if (given, channels) == (3, 1):
        weights = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
        grey = [(chunk * weights).sum(dim=1, keepdim=True).round().byte() for chunk in images.split(512)]
        return torch.cat(grey) if grey else images[:, :1]
    raise DataError(f"images have {given} channels: expected 1 (grey) or 3 (colour)")


def as_bytes(images: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """Values in [0, 1] rounded to 256 levels, others to the nearer end.

    >>> as_bytes(torch.tensor([-0.1, 0.5, 0.999])).tolist()
    [0, 128, 255]
    """
    return (images.clamp(0, 1) * 255).round().byte()


def prepare(images: UInt8[Tensor, "n c h w"], image_size: int | None, channels: int | None) -> UInt8[Tensor, "n d s t"]:
    """Bring images to ``image_size`` and ``channels``; None keeps what they have."""
    if image_size is not None:
        images = resize_square(images, image_size)
    return images if channels is None else to_channels(images, channels)


def decode_file(
    path: Path, image_size: int | None, channels: int | None, grey_range: tuple[float, float] | None = None
) -> UInt8[Tensor, "1 c h w"]:
    """Read one PNG, JPEG or TIFF as :func:`read_picture` does, and bring it to ``image_size`` and ``channels``."""
    pixels = read_picture(path, image_size, channels, grey_range)
    return prepare(torch.from_numpy(pixels)[None], image_size, channels)
