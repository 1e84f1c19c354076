"""The fading blur: the schedule and the taps by hand, and torch's convolution as the outside reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shadow_defense.generators.stylegan3.blur import blur, fading_sigma, gaussian_matrix
from shadow_defense.seeds import named_generator


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=named_generator(0, "blur"), dtype=torch.float64)


def test_schedule_by_hand() -> None:
    """A batch of 16 fades over 100 thousand images."""
    assert [fading_sigma(seen, 16) for seen in (0, 25_000, 50_000, 100_000, 10**9)] == [10.0, 7.5, 5.0, 0.0, 0.0]
    assert fading_sigma(50_000, 16, initial=4.0) == 2.0


def test_taps_by_hand() -> None:
    """At sigma 1 a tap is half of the middle one at distance 1, 1/16 at 2, 1/512 at 3, and none comes after."""
    row = gaussian_matrix(9, 1.0)[4]
    taps = torch.tensor([0, 1 / 512, 1 / 16, 1 / 2, 1, 1 / 2, 1 / 16, 1 / 512, 0], dtype=torch.float64)
    torch.testing.assert_close(row, taps / taps.sum())


@settings(max_examples=25)
@given(
    sigma=st.floats(0.34, 12.0),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_it_is_the_zero_padded_convolution(sigma: float, height: int, width: int) -> None:
    radius = int(3 * sigma)
    taps = torch.tensor([2.0 ** -((i / sigma) ** 2) for i in range(-radius, radius + 1)], dtype=torch.float64)
    taps = taps / taps.sum()
    images = noise(2, 3, height, width)
    kernel = torch.outer(taps, taps).expand(3, 1, -1, -1)
    expected = F.conv2d(images, kernel, padding=radius, groups=3)
    torch.testing.assert_close(blur(images, sigma), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.33])
def test_without_neighbouring_taps_the_images_stay(sigma: float) -> None:
    images = noise(1, 1, 4, 4)
    assert torch.equal(blur(images, sigma), images)
    assert torch.equal(gaussian_matrix(4, sigma), torch.eye(4, dtype=torch.float64))


def test_gradients() -> None:
    images = noise(1, 1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: blur(x, 2.0), images)
    assert torch.autograd.gradgradcheck(lambda x: blur(x, 2.0).square(), images)
