"""Images become bytes in (n, channels, height, width): decoding, checks, square crops, resizing, grey and colour."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

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


def prepare(images: UInt8[Tensor, "n c h w"], image_size: int | None, channels: int | None) -> UInt8[Tensor, "n d s t"]:
    """Bring images to ``image_size`` and ``channels``; None keeps what they have."""
    if image_size is not None:
        images = resize_square(images, image_size)
    return images if channels is None else to_channels(images, channels)


def unit_to_bytes(images: Float[np.ndarray, "n *pixel"], origin: str) -> UInt8[np.ndarray, "n *pixel"]:
    """Floats in [0, 1] to bytes. Raises :class:`DataError` naming the first image that holds anything else."""
    # NaN fails both comparisons, so one test finds everything that is not a brightness.
    good = ((images >= 0) & (images <= 1)).reshape(len(images), -1).all(axis=1)
    if not good.all():
        index = int(np.flatnonzero(~good)[0])
        fault = "values outside [0, 1]" if np.isfinite(images[index]).all() else "NaN or infinite values"
        raise DataError(f"{origin}, image {index}: {fault}; expected bytes, or floats in [0, 1]: rescale or repair it")
    return (images * 255).round().astype(np.uint8)


def decode_file(path: Path, image_size: int | None, channels: int | None) -> UInt8[Tensor, "1 c h w"]:
    """Read one PNG, JPEG or TIFF, turned upright by its EXIF tag, at ``image_size`` and ``channels``.

    Images of 16 bits are scaled by the full range of 16 bits, not by their own brightest pixel, so that exposures
    stay comparable. JPEGs much larger than ``image_size`` are decoded at a half, quarter or eighth of their size.

    Raises:
        DataError: naming the file, when it is unreadable, truncated, multi-page or out of range.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            pages = int(getattr(image, "n_frames", 1))
            if pages > 1:
                raise DataError(f"{path} holds {pages} pages: give one image a file")
            if image_size is not None:
                # Twice the wanted size at least, so that the anti-aliased resize still does the last step.
                image.draft("L" if channels == 1 else None, (2 * image_size, 2 * image_size))
            pixels = _bytes_of(ImageOps.exif_transpose(image), path)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"cannot read the image {path}: {error}; replace or remove the file") from error
    return prepare(torch.from_numpy(pixels)[None], image_size, channels)


def _bytes_of(image: object, path: Path) -> UInt8[np.ndarray, "c h w"]:
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: values {values.min()} to {values.max()}: expected 0 to 65535; save it as 16 bits")
        return ((values + 128) // 257).astype(np.uint8)[None]
    if image.mode == "F":
        return unit_to_bytes(np.asarray(image)[None], str(path))
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))[None]
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
