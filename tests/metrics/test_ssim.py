"""SSIM against scikit-image, by hand on regions, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from shadow_defense.errors import DataError
from shadow_defense.metrics.ssim import pairwise_ssim, ssim, ssim_map, ssim_mean
from shadow_defense.seeds import named_generator


def image_pair(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple:
    """A random image and a noisy version of it."""
    generator = named_generator(seed, "pair", *shape)
    first = torch.rand(shape, generator=generator, dtype=dtype)
    noise = torch.randn(shape, generator=generator, dtype=dtype)
    return first, (first + 0.2 * noise).clamp(0, 1)


def scikit_image(first: torch.Tensor, second: torch.Tensor) -> tuple[list[float], np.ndarray]:
    means, maps = [], []
    for a, b in zip(first.double().numpy(), second.double().numpy(), strict=True):
        mean, values = structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=0,
            full=True,
        )
        means.append(mean)
        maps.append(values.mean(axis=0))
    return means, np.stack(maps)


@pytest.mark.parametrize(
    "shape", [(2, 1, 11, 11), (2, 3, 11, 17), (3, 1, 28, 28), (2, 3, 32, 32), (1, 3, 64, 40), (1, 1, 224, 224)]
)
def test_equals_scikit_image(shape: tuple[int, ...]) -> None:
    first, second = image_pair(shape)
    means, maps = scikit_image(first, second)
    np.testing.assert_allclose(ssim_map(first, second).numpy(), maps, rtol=1e-5, atol=1e-9)
    assert ssim(first, second).tolist() == pytest.approx(means, rel=1e-5)
    assert pairwise_ssim(first, second).diagonal().tolist() == pytest.approx(means, rel=1e-5)


def test_flat_regions_are_exact_in_single_precision() -> None:
    # Variances far below C2 are where float32 moments fail: here by some 1e-4.
    first, second = (0.9 + 1e-3 * image for image in image_pair((1, 1, 32, 32), dtype=torch.float32))
    means, _ = scikit_image(first, second)
    assert ssim(first, second).tolist() == pytest.approx(means, rel=1e-6)


def test_region_is_the_mean_of_the_map_over_it() -> None:
    first, second = image_pair((2, 3, 16, 16))
    region = torch.zeros(2, 16, 16, dtype=torch.bool)
    region[0, 0, 0] = region[0, 7, 3] = True
    region[1, 2:4, 5:8] = True
    _, maps = scikit_image(first, second)
    expected = [(maps[0, 0, 0] + maps[0, 7, 3]) / 2, maps[1, 2:4, 5:8].mean()]
    assert ssim(first, second, region).tolist() == pytest.approx(expected, rel=1e-5)


def test_mean_leaves_the_border_out_and_a_region_does_not() -> None:
    maps = torch.zeros(1, 12, 12)
    maps[0, 5:7, 5:7] = 1
    assert ssim_mean(maps).item() == 1
    assert ssim_mean(maps, torch.ones(1, 12, 12)).item() == pytest.approx(4 / 144)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(11, 24),
    width=st.integers(11, 24),
    channels=st.sampled_from([1, 3]),
)
def test_symmetric_bounded_and_one_only_on_equal_images(seed: int, height: int, width: int, channels: int) -> None:
    first, second = image_pair((2, channels, height, width), seed)
    there, back = ssim(first, second), ssim(second, first)
    torch.testing.assert_close(there, back, rtol=1e-12, atol=1e-12)
    assert (there < 1).all() and (there >= -1).all()
    torch.testing.assert_close(ssim(first, first), torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0)


def test_pairwise_has_reconstructions_as_rows() -> None:
    reconstructions, _ = image_pair((2, 1, 12, 12))
    truths, _ = image_pair((18, 1, 12, 12))
    matrix = pairwise_ssim(reconstructions, truths)
    assert matrix.shape == (2, 18)
    assert matrix[1, 17] == pytest.approx(ssim(reconstructions[1:], truths[17:]).item(), rel=1e-9)
    assert matrix[0, 3] == pytest.approx(ssim(reconstructions[:1], truths[3:4]).item(), rel=1e-9)


@pytest.mark.parametrize("score", [ssim, pairwise_ssim])
def test_images_smaller_than_the_window_are_refused(score: object) -> None:
    with pytest.raises(DataError, match="10 x 20 px are smaller than the SSIM window of 11 px"):
        score(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))
