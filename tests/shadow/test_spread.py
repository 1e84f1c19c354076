"""Step 6: the equalised map is a distribution over the pixels of each image, and every pixel keeps its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shadow_defense.shadow.noise_map import equalise_histogram, luminance, spread, to_levels


def levels_of(seed: int, count: int = 3, side: int = 12, concentration: float = 3.0) -> Tensor:
    """Unevenly distributed levels, as vulnerability maps have them."""
    drawn = torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed)) ** concentration
    return (drawn * 255).round().long()


def test_equalisation_by_hand() -> None:
    """Levels 10 (x3), 20 (x2), 200 (x3) of 8 pixels: cdf 3, 5, 8; 255 * (0, 2, 5) / 5."""
    image = torch.tensor([[[10, 200, 20, 10], [200, 10, 200, 20]]])
    expected = torch.tensor([[[0, 255, 102, 0], [255, 0, 255, 102]]])
    assert torch.equal(equalise_histogram(image), expected)


def test_equalisation_against_skimage() -> None:
    """scikit-image returns the cdf itself, ours stretches it from the least level's to 1."""
    exposure = pytest.importorskip("skimage.exposure")
    levels = levels_of(0)
    for image, ours in zip(levels, equalise_histogram(levels), strict=True):
        cdf = exposure.equalize_hist(image.numpy().astype(np.uint8), nbins=256)
        lowest = cdf.min()
        expected = 255 * (cdf - lowest) / (1 - lowest)
        assert np.abs(ours.numpy() - expected).max() <= 0.5 + 1e-4


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), concentration=st.floats(0.2, 8))
def test_no_two_pixels_change_their_order(seed: int, concentration: float) -> None:
    before = levels_of(seed, count=1, concentration=concentration).flatten()
    after = equalise_histogram(before.view(1, 12, 12)).flatten()
    assert int(after.min()) >= 0 and int(after.max()) <= 255
    order = before.argsort(stable=True)
    assert (after[order].diff() >= 0).all()
    # Equal levels stay equal: the new level is a function of the old one.
    for level in before.unique():
        assert len(after[before == level].unique()) == 1


def test_equalisation_commutes_with_moving_pixels() -> None:
    """A reshape that mixes rows and columns, as in the authors' code, would not."""
    levels = levels_of(1)
    assert torch.equal(equalise_histogram(levels.transpose(1, 2)), equalise_histogram(levels).transpose(1, 2))
    assert torch.equal(equalise_histogram(levels.flip(2)), equalise_histogram(levels).flip(2))


def test_equalisation_is_per_image() -> None:
    dark, bright = levels_of(2, count=1), levels_of(3, count=1, concentration=0.2)
    together = equalise_histogram(torch.cat([dark, bright]))
    assert torch.equal(together, torch.cat([equalise_histogram(dark), equalise_histogram(bright)]))


def test_a_constant_image_is_spread_evenly() -> None:
    assert torch.equal(equalise_histogram(torch.full((1, 3, 3), 7)), torch.zeros(1, 3, 3, dtype=torch.long))
    torch.testing.assert_close(spread(torch.ones(1, 1, 4, 4)), torch.full((1, 1, 4, 4), 1 / 16))


def test_levels_span_each_image() -> None:
    maps = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 100.0, 50.0]]])
    assert to_levels(maps).tolist() == [[[0, 128, 255]], [[0, 255, 128]]]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), channels=st.sampled_from([1, 3]), equalise=st.booleans())
def test_spread_is_a_distribution(seed: int, channels: int, equalise: bool) -> None:
    maps = torch.rand(2, channels, 9, 9, generator=torch.Generator().manual_seed(seed)).double() ** 4
    mass = spread(maps, equalise=equalise)
    assert mass.shape == (2, 1, 9, 9)
    assert (mass > 0).all()
    torch.testing.assert_close(mass.sum(dim=(1, 2, 3)), torch.ones(2))


def test_most_mass_on_the_most_rebuildable_pixel() -> None:
    maps = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    mass = spread(maps)
    assert (mass.flatten()[maps.flatten().argsort()].diff() >= 0).all()
    # Levels 255 and 0 at T = 20.
    ratio = float(mass.max() / mass.min())
    assert abs(ratio - np.exp(255 / 20)) < 1e-3 * ratio


def test_without_equalisation_the_levels_are_used_as_they_come() -> None:
    maps = torch.tensor([0.0, 0.1, 1.0]).view(1, 1, 1, 3)
    expected = torch.softmax(torch.tensor([0.0, 26.0, 255.0]) / 20, dim=0)
    torch.testing.assert_close(spread(maps, equalise=False).flatten(), expected)
    equalised = torch.softmax(torch.tensor([0.0, 128.0, 255.0]) / 20, dim=0)
    torch.testing.assert_close(spread(maps).flatten(), equalised)


def test_colour_is_weighed_as_luminance() -> None:
    colours = torch.eye(3).view(3, 3, 1, 1)
    torch.testing.assert_close(luminance(colours).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    maps = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(6)).double()
    torch.testing.assert_close(spread(maps), spread(luminance(maps).unsqueeze(1)))
