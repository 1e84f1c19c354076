"""Pictures hold exactly the tensor they were made from, and maps keep their meaning in colour."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shadow_defense.errors import DataError
from shadow_defense.report.kit.pictures import (
    HEAT_OPACITY,
    HEAT_TABLE,
    heat_overlay,
    noise_limit,
    picture,
    pixels,
    signed_picture,
)
from shadow_defense.seeds import named_generator


def _decode(uri: str) -> np.ndarray:
    prefix = "data:image/png;base64,"
    assert uri.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix), validate=True))))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3]), height=st.integers(1, 9), width=st.integers(1, 9))
def test_png_holds_every_byte(seed: int, channels: int, height: int, width: int) -> None:
    levels = torch.randint(0, 256, (channels, height, width), generator=named_generator(seed, "levels"))
    read = torch.from_numpy(_decode(picture(levels / 255, "", "").source).copy()).view(height, width, channels)
    assert torch.equal(read.permute(2, 0, 1).long(), levels)


def test_values_out_of_range_are_clamped_and_nan_is_black() -> None:
    image = torch.tensor([[[-3.0, 7.0, float("nan"), float("inf")]]])
    assert pixels(image).ravel().tolist() == [0, 255, 0, 255]


def test_other_channel_counts_are_named() -> None:
    with pytest.raises(DataError, match="2 channels"):
        picture(torch.zeros(2, 4, 4), "", "")


def test_overlay_mixes_grey_and_colour_table() -> None:
    original = torch.tensor([[[0.2, 0.8]], [[0.4, 0.8]], [[0.6, 0.8]]])
    drawn = heat_overlay(original, torch.tensor([[0.0, 1.0]]))
    table = matplotlib.colormaps[HEAT_TABLE]
    for column, (grey, heat) in enumerate([(0.4, 0.0), (0.8, 1.0)]):
        expected = (1 - HEAT_OPACITY) * grey + HEAT_OPACITY * np.array(table(heat)[:3])
        np.testing.assert_allclose(drawn[0, column] / 255, expected, atol=0.6 / 255)


def test_noise_turns_red_where_it_adds_and_blue_where_it_takes_away() -> None:
    drawn = signed_picture(torch.tensor([[[0.1, -0.1, 0.0]]]), limit=0.1).astype(int)
    red, blue, neutral = drawn[0]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert neutral.max() - neutral.min() <= 2
    assert neutral.min() > 240


def test_opposite_noise_of_channels_does_not_vanish() -> None:
    noise = torch.tensor([0.1, -0.1, 0.0]).view(3, 1, 1)
    assert abs(int(signed_picture(noise, 0.1)[0, 0, 0]) - int(signed_picture(noise, 0.1)[0, 0, 2])) > 50


def test_noise_limit_ignores_one_outlier_but_not_all_noise() -> None:
    noise = torch.full((1, 20, 20), 0.05)
    noise[0, 0, 0] = 9.0
    assert noise_limit([noise]) == pytest.approx(0.05)
    single = torch.zeros(1, 20, 20)
    single[0, 3, 3] = -0.4
    assert noise_limit([single]) == pytest.approx(0.4)
    assert noise_limit([torch.zeros(1, 4, 4)]) == 1.0
