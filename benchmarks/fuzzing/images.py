"""Image files: PNG, JPEG and TIFF of many modes, with headers that claim, and other formats under their names."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import change_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".PNG", ".TIFF")


def _array(random: np.random.Generator) -> np.ndarray:
    height, width = (int(random.integers(1, 40)) for _ in range(2))
    dtype, colours = pick(random, ((np.uint8, 1), (np.uint8, 2), (np.uint8, 3), (np.uint8, 4), (np.uint16, 1)))
    top = pick(random, (2, 5, 256, 4096, 65536)) if dtype is np.uint16 else pick(random, (1, 2, 256))
    values = random.integers(0, top, (height, width, colours)).astype(dtype)
    return values[..., 0] if colours == 1 else values


def encoded(random: np.random.Generator) -> tuple[bytes, str]:
    """A small valid image in one of the three formats."""
    from PIL import Image

    image = Image.fromarray(_array(random))
    form = pick(random, ("PNG", "PNG", "JPEG", "TIFF", "TIFF"))
    if form == "PNG":
        mode = pick(random, (image.mode, image.mode, "1", "P", "PA", "LA", "RGBA", "I", "I;16"))
    elif form == "JPEG":
        mode = pick(random, ("L", "RGB", "CMYK", "YCbCr"))
    else:
        mode = pick(random, (image.mode, image.mode, "1", "L", "F", "I", "P", "CMYK", "LAB", "YCbCr", "RGBA"))
    try:
        image = image.convert(mode)
        options = {}
        if form == "TIFF":
            options["compression"] = pick(
                random, (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "jpeg")
            )
            tags = pick(random, ({}, {262: 0}, {262: 3}, {339: 3}, {274: 6}, {258: 12}, {277: 7}, {284: 2}))
            options["tiffinfo"] = tags
        if form == "PNG" and mode in ("L", "P", "RGB") and random.random() < 0.3:
            options["transparency"] = pick(random, (0, 3)) if mode != "RGB" else (0, 0, 0)
        if form == "JPEG":
            options["progressive"] = bool(random.integers(2))
            if random.random() < 0.3:
                options["exif"] = b"Exif\0\0" + random.bytes(40)
        written = io.BytesIO()
        image.save(written, form, **{key: value for key, value in options.items() if value is not None})
    except Exception:  # Not every mode goes into every format.
        written = io.BytesIO()
        Image.fromarray(_array(random)[..., :1].squeeze().astype(np.uint8).reshape(-1, 1)).save(written, form)
    return written.getvalue(), f"{form} of mode {mode}"


def png(width: int, height: int, depth: int, colour: int, data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of chunks whose header may claim anything."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def tiff(random: np.random.Generator) -> bytes:
    """A TIFF of single entries, some of them left out, of another type, or claiming much."""
    pixels = random.bytes(64)
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 8, 279: 64, 339: 1, 284: 1}
    for _ in range(int(random.integers(1, 4))):
        tag = pick(random, tuple(entries))
        if random.random() < 0.4:
            entries.pop(tag, None)
        else:
            entries[tag] = pick(random, (0, 2, 3, 4, 5, 7, 8, 16, 32, 64, 65535, 10**5, 10**6, 2**31 - 1, 2**32 - 1))
    at = 8 + 2 + 12 * len(entries) + 4
    if 273 in entries:
        entries[273] = at
    packed = b"".join(
        struct.pack("<HHII", tag, pick(random, (3, 4, 4, 4, 5, 12)), pick(random, (1, 1, 1, 1, 2, 2**30)), value)
        for tag, value in sorted(entries.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + pixels


def _other(random: np.random.Generator) -> tuple[bytes, str]:
    """Another format, which Pillow may know and the project must not open."""
    from PIL import Image

    form = pick(random, ("EPS", "EPS", "GIF", "BMP", "WEBP", "PPM", "ICO", "PDF", "PCX", "TGA", "SVG", "ICNS", "DDS"))
    if form == "EPS":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run showpage\n%%EOF\n", form
    if form == "SVG":
        return b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', form
    written = io.BytesIO()
    try:
        Image.fromarray(_array(random)).convert("RGB").save(written, form)
    except Exception:  # A codec that this Pillow lacks.
        return random.bytes(100), "noise"
    return written.getvalue(), form


def _claim(random: np.random.Generator) -> tuple[bytes, str]:
    """A header that claims more than the file has, or a file that grows."""
    side = pick(random, (10_000, 30_000, 65_500, 10**6, 2**31 - 1))
    which = pick(
        random, ("png claims", "png bomb", "png text", "png icc", "tiff", "tiff", "tiff", "jpeg claims", "apng")
    )
    if which == "png claims":
        size = (side, pick(random, (1, 8, side)))
        return png(*size, pick(random, (1, 8, 16, 3)), pick(random, (0, 2, 3, 4, 6, 1)), b"\0" * 100), which
    if which == "png bomb":
        rows = pick(random, (2_000, 12_000))
        return png(8 * rows, rows, 1, 0, bytes((rows + 1) * rows)), which
    if which == "png text":
        return png(8, 8, 8, 0, bytes(72), (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))), which
    if which == "png icc":
        return png(8, 8, 8, 0, bytes(72), (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7)))), which
    if which == "apng":
        return png(8, 8, 8, 0, bytes(72), (b"acTL", struct.pack(">II", pick(random, (0, 5, 2**31)), 0))), which
    if which == "tiff":
        return tiff(random), which
    frame = struct.pack(">BHHB", 8, min(side, 65500), min(side, 65500), 1) + b"\x01\x11\0"
    return b"\xff\xd8\xff\xc2" + struct.pack(">H", 2 + len(frame)) + frame + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0", which


def make(random: np.random.Generator, folder: Path) -> Input:
    """One image file, given to the decoder."""
    from shadow_defense.data.images import decode_file

    choice = random.random()
    content, what = encoded(random) if choice < 0.6 else _claim(random) if choice < 0.8 else _other(random)
    if random.random() < 0.4:
        content, change = change_bytes(random, content)
        what = f"{what}, {change}"
    suffix = pick(random, SUFFIXES)
    path = folder / f"image{suffix}"
    path.write_bytes(content)
    size, channels = pick(random, (None, 8, 32)), pick(random, (None, 1, 3))

    def give() -> None:
        image = decode_file(path, size, channels)
        assert image.shape[0] == 1 and image.numel() > 0

    return Input(f"{what}, as {suffix}, size {size}, channels {channels}", give)


def _prepare(_: Path) -> None:
    from PIL import Image

    Image.init()


KIND = Kind(make, ("shadow_defense.data.images",), _prepare)
