"""Denoisers, on photographs with noise of a known strength."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shadow_defense.attacks.adaptive.denoiser import DENOISERS, denoise, noise_level
from shadow_defense.errors import ConfigError
from shadow_defense.metrics.psnr import psnr

NOISE = 0.1


def photographs(channels: int) -> Tensor:
    """A photographer at 64 px, and mirrored, in [0, 1]; it lies in scikit-image's wheel."""
    data = pytest.importorskip("skimage.data")
    grey = torch.from_numpy(data.camera()).float()[None, None]
    small = F.interpolate(grey / 255, size=(64, 64), mode="area")
    pair = torch.cat([small, small.flip(3)])
    return pair if channels == 1 else torch.cat([pair, 1 - pair, 0.5 * pair], dim=1)


def noisy(images: Tensor) -> Tensor:
    return (images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


@pytest.mark.parametrize("name", ["total-variation", "non-local-means"])
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_falls(name: str, channels: int) -> None:
    images = photographs(channels)
    seen = noisy(images)
    gained = psnr(denoise(seen, name), images) - psnr(seen, images)
    assert (gained > 1).all(), gained


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_what_has_no_noise_is_hardly_touched(name: str) -> None:
    """Details of a photograph are no noise: smoothed at one weight for all it falls to 28 dB."""
    images = photographs(3)
    assert (psnr(denoise(images, name), images) > 40).all()


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_a_constant_image_stays(name: str) -> None:
    images = torch.full((2, 3, 16, 16), 0.25)
    torch.testing.assert_close(denoise(images, name), images)


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_an_image_does_not_depend_on_the_others(name: str) -> None:
    seen = noisy(photographs(1))
    together = denoise(seen, name)
    assert (together.shape, together.dtype) == (seen.shape, seen.dtype)
    assert torch.equal(together[1:], denoise(seen[1:], name))
    assert torch.equal(together[:1], denoise(torch.cat([seen[:1], torch.zeros_like(seen[:1])]), name)[:1])


def test_none_is_none() -> None:
    seen = noisy(photographs(3))
    assert torch.equal(denoise(seen, "none"), seen)


@pytest.mark.parametrize("side", [64, 65])
def test_the_noise_level_is_found(side: int) -> None:
    """White noise on a ramp, whose diagonal details are zero."""
    ramp = torch.linspace(0, 1, side)[None, None].expand(3, side, side)
    drawn = ramp + NOISE * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
    assert noise_level(ramp.double().numpy()) == pytest.approx(0, abs=1e-6)
    assert noise_level(drawn.double().numpy()) == pytest.approx(NOISE, rel=0.05)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="unknown denoiser 'nonlocal-means': did you mean 'non-local-means'"):
        denoise(torch.zeros(1, 1, 8, 8), "nonlocal-means")
    with pytest.raises(ConfigError, match="valid are: non-local-means, none, total-variation"):
        denoise(torch.zeros(1, 1, 8, 8), "wavelets")
