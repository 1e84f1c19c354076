"""Decoding, cropping, resizing and channels, against Pillow and hand-computed pixels; damaged files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shadow_defense.data.grey_levels import unit_to_bytes
from shadow_defense.data.images import crop_square, decode_file, prepare, resize_square, to_channels
from shadow_defense.errors import DataError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("side", "size"), [(100, 32), (64, 28), (25, 32)])
def test_resize_agrees_with_pillow(side: int, size: int) -> None:
    pixels = noise(side, side)
    ours = resize_square(torch.from_numpy(pixels)[None, None], size)[0, 0].numpy()
    reference = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    # Both round twice (rows, then columns) in fixed point: they may differ by one level.
    assert np.abs(ours.astype(int) - reference).max() <= 1


def test_shrinking_does_not_alias() -> None:
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    # One-pixel stripes must become grey; point sampling would keep them black or white.
    inner = resize_square(stripes, 16)[..., 2:-2].float()
    assert (inner - 127.5).abs().max() < 4


def test_crop_keeps_the_centre_and_the_shape_of_things() -> None:
    wide = torch.arange(7, dtype=torch.uint8).expand(1, 1, 4, 7)
    assert crop_square(wide)[0, 0, 0].tolist() == [1, 2, 3, 4]
    disc = torch.zeros(1, 1, 60, 120, dtype=torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(120), indexing="ij")
    disc[0, 0][(rows - 29.5) ** 2 + (columns - 59.5) ** 2 < 20**2] = 255
    small = resize_square(disc, 30)[0, 0] > 127
    assert small.any(0).sum() == small.any(1).sum() == 20


def test_luminance_agrees_with_pillow_and_grey_is_repeated() -> None:
    colour = noise(9, 9, 3)
    ours = to_channels(torch.from_numpy(colour.transpose(2, 0, 1).copy())[None], 1)[0, 0].numpy()
    reference = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.abs(ours.astype(int) - reference).max() <= 1
    grey = torch.from_numpy(noise(2, 1, 5, 5))
    assert torch.equal(to_channels(grey, 3)[:, 2:], grey)
    with pytest.raises(DataError, match="4 channels"):
        to_channels(torch.zeros(1, 4, 2, 2, dtype=torch.uint8), 3)


def test_an_empty_set_is_prepared_like_any_other() -> None:
    assert prepare(torch.zeros(0, 3, 10, 12, dtype=torch.uint8), 8, 1).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_lossless_files_come_back_to_the_byte(tmp_path: Path, suffix: str) -> None:
    for pixels in (noise(10, 12), noise(10, 12, 3)):
        Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
        decoded = decode_file(tmp_path / f"a{suffix}", None, None)[0].numpy()
        assert np.array_equal(decoded, np.atleast_3d(pixels).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16)).save(tmp_path / f"a{suffix}")
    # 32768 / 65535 * 255 = 127.502
    assert decode_file(tmp_path / f"a{suffix}", None, None).flatten().tolist() == [0, 1, 128, 255]


def test_float_tiff_must_hold_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "good.tif")
    assert decode_file(tmp_path / "good.tif", None, None).flatten().tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(tmp_path / "bad.tif")
    with pytest.raises(DataError, match=r"bad\.tif.*NaN"):
        decode_file(tmp_path / "bad.tif", None, None)


def test_opaque_alpha_is_dropped_and_a_palette_becomes_colour(tmp_path: Path) -> None:
    colour = noise(6, 6, 3)
    Image.fromarray(np.dstack([colour, np.full((6, 6), 255, np.uint8)])).save(tmp_path / "a.png")
    assert np.array_equal(decode_file(tmp_path / "a.png", None, None)[0].numpy(), colour.transpose(2, 0, 1))
    palette = Image.fromarray(colour).quantize(7)
    palette.save(tmp_path / "p.png")
    expected = np.asarray(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    assert np.array_equal(decode_file(tmp_path / "p.png", None, None)[0].numpy(), expected.transpose(2, 0, 1))


def test_transparency_is_refused_however_the_file_says_it(tmp_path: Path) -> None:
    grey = noise(6, 6)
    grey[0, 0] = 7
    Image.fromarray(np.dstack([np.full_like(grey, 255)] * 3 + [grey])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, grey]), "LA").save(tmp_path / "la.png")
    Image.fromarray(grey).save(tmp_path / "key.png", transparency=7)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "key16.png", transparency=7 * 257)
    Image.fromarray(np.dstack([grey] * 3)).quantize(9).save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba", "la", "key", "key16", "palette"):
        with pytest.raises(DataError, match=rf"{name}\.png is transparent in places: lay it on"):
            decode_file(tmp_path / f"{name}.png", None, None)


def ramp(lowest: float, highest: float) -> np.ndarray:
    return np.linspace(lowest, highest, 4096).reshape(64, 64).astype(np.uint16)


@pytest.mark.parametrize(
    ("lowest", "highest"), [(0, 4095), (31768, 33768), (0, 255)], ids=["12 bits", "DeepLesion", "8 bits"]
)
def test_few_bits_in_a_file_of_sixteen_need_their_range(tmp_path: Path, lowest: int, highest: int) -> None:
    Image.fromarray(ramp(lowest, highest)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"of 256 grey levels.* {lowest} to {highest}: set data\.grey_range"):
        decode_file(tmp_path / "a.png", None, None)
    decoded = decode_file(tmp_path / "a.png", None, None, (float(lowest), float(highest)))[0, 0].numpy()
    assert np.abs(decoded - np.linspace(0, 255, 4096).reshape(64, 64)).max() <= 1
    assert len(np.unique(decoded)) == 256
    # To keep them dark is lawful too, once it is said.
    assert decode_file(tmp_path / "a.png", None, None, (0.0, 65535.0)).max() == round(highest / 257)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_inverted_at_every_depth(tmp_path: Path, dtype: type) -> None:
    tifffile = pytest.importorskip("tifffile")
    highest = 1 if dtype is np.float32 else np.iinfo(dtype).max
    values = (np.linspace(0, 1, 4096).reshape(64, 64) * highest).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    decoded = decode_file(tmp_path / "a.tif", None, None)[0, 0].numpy()
    assert np.abs(decoded - np.linspace(255, 0, 4096).reshape(64, 64)).max() <= 1


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, 16:] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = decode_file(tmp_path / "a.jpg", None, None)[0, 0]
    assert upright.shape == (32, 16)
    assert upright[:16].float().mean() < 5 and upright[16:].float().mean() > 250


def test_reduced_decoding_of_a_jpeg_looks_the_same(tmp_path: Path) -> None:
    rows, columns = np.meshgrid(np.linspace(0, 12, 640), np.linspace(0, 9, 640))
    Image.fromarray((127 + 60 * np.sin(rows) + 60 * np.cos(columns)).astype(np.uint8)).save(
        tmp_path / "a.jpeg", quality=95
    )
    ours = decode_file(tmp_path / "a.jpeg", 64, 1)[0, 0].numpy()
    with Image.open(tmp_path / "a.jpeg") as whole:
        reference = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - reference).max() <= 2


def test_unreadable_and_truncated_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpeg").write_text("not an image")
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.jpeg")
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.png")
    for name in ("whole.jpeg", "whole.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(data[: len(data) // 2])
    Image.fromarray(noise(8, 8)).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.new("L", (8, 8))])
    for name in ("text.jpeg", "cut_whole.jpeg", "cut_whole.png", "pages.tif"):
        with pytest.raises(DataError, match=name) as caught:
            decode_file(tmp_path / name, 32, 1)
        assert "\n" not in str(caught.value)


def test_values_that_are_no_brightness_are_refused_with_their_index() -> None:
    images = np.zeros((3, 2, 2))
    images[1, 0, 0] = np.inf
    with pytest.raises(DataError, match="image 1: NaN or infinite"):
        unit_to_bytes(images, "array")
    images[1, 0, 0] = 1.5
    with pytest.raises(DataError, match=r"image 1: values outside \[0, 1\]"):
        unit_to_bytes(images, "array")
