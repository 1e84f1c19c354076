"""One PNG, JPEG or TIFF as bytes: the picture that a viewer shows, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from jaxtyping import UInt8

from shadow_defense.data.boundary import IMAGE_BYTES, IMAGE_PIXELS, check_pixels, large_in_turn, open_plain, reading
from shadow_defense.data.grey_levels import range_to_bytes, refuse_lost, unit_to_bytes
from shadow_defense.errors import DataError, shown

if TYPE_CHECKING:
    from PIL import Image, ImageFile

# Pillow's other formats include interpreters of programs (EPS starts Ghostscript), whatever a file is called.
FORMATS = ("PNG", "JPEG", "TIFF")
PHOTOMETRIC = 262
WHITE_IS_ZERO = 0
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")


def read_picture(
    path: Path, image_size: int | None, channels: int | None, grey_range: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "c h w"]:
    """Read one PNG, JPEG or TIFF, turned upright by its EXIF tag, at its own size.

    Grey values of more than 8 bits are scaled by the full range of their bits, not by their own brightest pixel, so
    that exposures stay comparable. JPEGs much larger than ``image_size`` come at a half, quarter or eighth.

    Args:
        grey_range: the grey values that become black and white, in place of the range of the bits.

    Raises:
        DataError: naming the file, when it is unreadable, too large, of several pages, transparent or out of range, or
            when few grey levels would be left of many.
    """
    from PIL import ImageOps

    with (
        reading("the image", path, "replace or remove the file"),
        open_plain(path, IMAGE_BYTES) as file,
        _opened(file, path) as image,
    ):
        check_pixels(image.width, image.height, path)
        _refuse_pages(image, path)
        if image.format == "JPEG":
            file.seek(0)
            check_scans(file.read(), image.width * image.height, path)
            if image_size is not None:
                # Twice the wanted size at least, so that the anti-aliased resize still does the last step.
                image.draft("L" if channels == 1 else None, (2 * image_size, 2 * image_size))
        # What the file says of itself does not outlive the turning.
        raw, inverted = str(image.tile), _is_white_zero(image)
        with large_in_turn(image.width * image.height):
            upright = ImageOps.exif_transpose(image)
            _refuse_transparency(upright, path)
            pixels = _bytes_of(upright, raw, path, grey_range)
        return 255 - pixels if inverted else pixels


def _opened(file: BinaryIO, path: Path) -> ImageFile.ImageFile:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(f"{shown(path)} is no PNG, JPEG or TIFF, or a damaged one: replace or remove it") from error


def check_scans(data: bytes, pixels: int, path: Path) -> None:
    """Raise :class:`DataError` for a progressive JPEG whose many scans are each a pass over many pixels."""
    # Inside a scan the byte FF is followed by 00, so that this is the marker alone.
    scans = data.count(b"\xff\xda")
    if scans > 16 and scans * pixels > 16 * IMAGE_PIXELS:
        raise DataError(f"{shown(path)} has {scans} scans: expected at most 16 in a large JPEG; save it anew")


def _refuse_pages(image: Image.Image, path: Path) -> None:
    try:
        # Counting the pages would read all of them.
        image.seek(1)
    except EOFError:
        image.seek(0)
        return
    raise DataError(f"{shown(path)} holds several pages: give one image a file")


def _is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF of more than 8 bits; Pillow inverts those of up to 8 itself."""
    from PIL import TiffImagePlugin

    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.mode[0] in "IF"
        and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    )


def _refuse_transparency(image: Image.Image, path: Path) -> None:
    """Nothing says what lies behind a transparent pixel; an alpha channel that is opaque throughout says nothing."""
    if not image.has_transparency_data:
        return
    if image.mode[0] == "I":
        opaque = not (np.asarray(image) == image.info["transparency"]).any()
    else:
        opaque = image.convert("RGBA").getchannel("A").getextrema()[0] == 255
    if not opaque:
        raise DataError(f"{shown(path)} is transparent in places: lay it on its background and save it without alpha")


def _bytes_of(
    image: Image.Image, raw: str, path: Path, grey_range: tuple[float, float] | None
) -> UInt8[np.ndarray, "c h w"]:
    """The bytes of a loaded image; ``raw`` names how the file stores its pixels."""
    mode, name = image.mode, shown(path)
    if mode in COLOUR_MODES:
        if grey_range is not None:
            raise DataError(f"{name} is in colour: data.grey_range is for grey images; leave it out")
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    elif mode in GREY_MODES:
        values = np.array(image.convert("L"))[None]
        pixels = values if grey_range is None else range_to_bytes(values, *grey_range, name)
    elif mode == "F" or mode.startswith("I"):
        values = np.asarray(image)[None]
        if grey_range is not None:
            pixels = range_to_bytes(values, *grey_range, name)
        elif mode == "F":
            pixels = unit_to_bytes(values, name)
        else:
            highest = 4095 if "I;12" in raw else 65535
            if values.min() < 0 or values.max() > highest:
                raise DataError(
                    f"{name}: values {values.min()} to {values.max()}: expected 0 to {highest}; save it as 16 bits, "
                    "or set data.grey_range to the values that are black and white"
                )
            pixels = range_to_bytes(values, 0.0, float(highest), name)
            refuse_lost(pixels, values, path)
    else:
        raise DataError(f"{name} has pixels of mode '{mode}': expected grey or RGB; convert it")
    return pixels
