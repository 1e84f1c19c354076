"""Augmentation: known images moved by known maps, torch's grid_sample, gradients, and how often things happen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shadow_defense.generators.adversarial import r1_penalty
from shadow_defense.generators.augmentation import (
    BRIGHTNESS_DEVIATION,
    CONTRAST_DEVIATION,
    LARGEST_ANGLE,
    LARGEST_SHIFT,
    SCALE_DEVIATION,
    adapted_probability,
    augment,
    draw_geometry,
    resample,
)
from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator
from shadow_defense.seeds import named_generator


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=named_generator(0, "augmentation"), dtype=torch.float64) * 2 - 1


def map_of(rows: list[list[float]], count: int = 1) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).expand(count, 2, 3)


def test_probability_zero_is_the_identity() -> None:
    images, draws = noise(3, 1, 5, 5), named_generator(0, "draws")
    before = draws.get_state()
    assert torch.equal(augment(images, 0.0, draws), images)
    assert torch.equal(draws.get_state(), before)


def test_images_that_draw_nothing_come_back_exactly() -> None:
    """At p = 0.05 most of 64 images draw none of six operations (0.735 of them), the others change."""
    images = noise(64, 2, 8, 8).float()
    out = augment(images, 0.05, named_generator(0, "draws"))
    same = (out == images).flatten(1).all(dim=1)
    assert 35 <= int(same.sum()) <= 58


def test_each_image_alone() -> None:
    """What happens to an image does not depend on the others' pixels."""
    images = noise(6, 1, 8, 8)
    others = images.clone()
    others[:3] = 0
    first, second = (augment(batch, 1.0, named_generator(0, "draws")) for batch in (images, others))
    assert torch.equal(first[3:], second[3:])
    assert not torch.equal(first[:3], second[:3])


def test_images_get_draws_of_their_own() -> None:
    images = noise(1, 1, 8, 8).expand(20, -1, -1, -1)
    out = augment(images, 1.0, named_generator(0, "draws"))
    assert len({tuple(image.flatten().tolist()) for image in out}) == 20


@pytest.mark.parametrize("width", [3, 4])
def test_flip(width: int) -> None:
    images = noise(2, 3, 5, width)
    assert torch.equal(resample(images, map_of([[-1, 0, 0], [0, 1, 0]], 2)), images.flip(3))


def test_shift_mirrors_at_the_border() -> None:
    """Content moves against the shift: pixel x comes from x + 1, and beyond the last from its mirror image."""
    image = torch.arange(12, dtype=torch.float64).view(1, 1, 3, 4)
    right = resample(image, map_of([[1, 0, 1], [0, 1, 0]]))
    assert right[0, 0].tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    up = resample(image, map_of([[1, 0, 0], [0, 1, -2]]))
    assert up[0, 0].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_quarter_turn() -> None:
    image = noise(1, 1, 5, 5)
    # (x, y) from (-y, x): what lies to the right (x = 2, y = 0) is shown where y = -2, at the top.
    torch.testing.assert_close(resample(image, map_of([[0, -1, 0], [1, 0, 0]])), image.rot90(1, dims=(2, 3)))


def test_half_pixels_are_bilinear() -> None:
    image = torch.tensor([[0.0, 4.0], [8.0, 20.0]], dtype=torch.float64).view(1, 1, 2, 2)
    out = resample(image, map_of([[1, 0, 0.5], [0, 1, 0.5]]))
    # Between all four; below the last row and right of the last column the mirror holds the border's value.
    assert out[0, 0].tolist() == [[8.0, 12.0], [14.0, 20.0]]


@settings(max_examples=30)
@given(
    numbers=st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4),
    shifts=st.lists(st.floats(-4, 4), min_size=2, max_size=2),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
)
def test_resampling_is_grid_sample(numbers: list[float], shifts: list[float], height: int, width: int) -> None:
    a, b, c, d = numbers
    images = noise(2, 2, height, width)
    maps = map_of([[a, b, shifts[0]], [c, d, shifts[1]]], 2)
    # grid_sample's coordinates run from -1 to 1 over each side.
    theta = map_of([[a, b * height / width, 2 * shifts[0] / width], [c * width / height, d, 2 * shifts[1] / height]], 2)
    grid = F.affine_grid(theta, [2, 2, height, width], align_corners=False)
    expected = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(resample(images, maps), expected, rtol=0, atol=1e-9)


def test_gradients_of_first_and_second_order() -> None:
    images = noise(2, 1, 4, 4).requires_grad_()

    def augmented(x: Tensor) -> Tensor:
        return augment(x, 1.0, named_generator(3, "draws"))

    assert not torch.equal(augmented(images), images)
    assert torch.autograd.gradcheck(augmented, images)
    assert torch.autograd.gradgradcheck(lambda x: augmented(x).square(), images)


def test_r1_at_augmented_images() -> None:
    """The penalty at D(augment(x)) trains the discriminator."""
    discriminator = StyleGAN3Discriminator(img_resolution=8, img_channels=1, channel_base=32, channel_max=4)

    class Augmented(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return discriminator(augment(x, 1.0, named_generator(0, "draws")))

    r1_penalty(Augmented(), noise(4, 1, 8, 8).float()).backward()
    assert float(discriminator.b8.conv0.weight.grad.norm()) > 0


def test_how_often_each_operation_happens() -> None:
    """20 000 draws at p = 0.4: shares within 4 standard errors, sizes within their ranges."""
    count, p, side = 20_000, 0.4, 64
    maps = draw_geometry(count, side, side, p, named_generator(0, "draws")).double()
    determinant = maps[:, 0, 0] * maps[:, 1, 1] - maps[:, 0, 1] * maps[:, 1, 0]
    angle = torch.atan2(maps[:, 1, 0], maps[:, 1, 1])
    log_scale = -0.5 * determinant.abs().log2()
    shift = maps[:, :, 2]

    def share(happened: Tensor, expected: float) -> None:
        error = math.sqrt(expected * (1 - expected) / count)
        assert float(happened.double().mean()) == pytest.approx(expected, abs=4 * error)

    share(determinant < 0, p / 2)
    share(angle.abs() > 1e-6, p)
    share(log_scale.abs() > 1e-6, p)
    # Of shifts by whole pixels up to 8, 1/16 are 0 along an axis.
    share((shift != 0).any(dim=1), p * (1 - 1 / 16**2))
    assert torch.equal(shift, shift.round())
    assert float(shift.abs().max()) == LARGEST_SHIFT * side
    assert 0.99 * LARGEST_ANGLE < float(angle.abs().max()) <= LARGEST_ANGLE + 1e-6
    assert float(log_scale[log_scale.abs() > 1e-6].std()) == pytest.approx(SCALE_DEVIATION, rel=0.05)
    # Rotation and scale alone: columns stay orthogonal and of one length.
    torch.testing.assert_close(maps[:, :, 0].norm(dim=1), maps[:, :, 1].norm(dim=1))
    assert float((maps[:, :, 0] * maps[:, :, 1]).sum(dim=1).abs().max()) < 1e-6


def test_contrast_and_brightness() -> None:
    """An image of one value v stays one: 2^a v + b, with a and b from two values of v under the same draws."""
    count = 20_000
    low, high = (
        augment(torch.full((count, 1, 1, 1), value), 1.0, named_generator(0, "draws")).flatten().double()
        for value in (0.0, 1.0)
    )
    contrast, brightness = high - low, low
    assert float(contrast.log2().std()) == pytest.approx(CONTRAST_DEVIATION, rel=0.05)
    assert float(contrast.log2().mean()) == pytest.approx(0, abs=0.02)
    assert float(brightness.std()) == pytest.approx(BRIGHTNESS_DEVIATION, rel=0.05)


def test_the_probability_adapts() -> None:
    """A batch of 32, looked at every 4 steps, takes p from 0 to 1 in 500 thousand images: 3907 looks."""
    p, looks = 0.0, 0
    while p < 1:
        p, looks = adapted_probability(p, 0.61, 32 * 4), looks + 1
    assert looks == math.ceil(500_000 / 128)
    assert adapted_probability(p, 1.0, 128) == 1.0
    assert adapted_probability(0.5, 0.59, 500) == pytest.approx(0.499)
    assert adapted_probability(0.5, 0.6, 500) == 0.5
    assert adapted_probability(0.0, -1.0, 128) == 0.0
    assert adapted_probability(0.5, 0.1, 1000, speed_images=100_000, target=0.0) == pytest.approx(0.51)
