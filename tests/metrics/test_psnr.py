"""PSNR against scikit-image, by hand, and on regions."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from shadow_defense.errors import DataError
from shadow_defense.metrics.inputs import check_same_shape
from shadow_defense.metrics.psnr import pairwise_psnr, psnr
from shadow_defense.seeds import named_generator


def random_images(*shape: int, name: str = "images") -> torch.Tensor:
    return torch.rand(shape, generator=named_generator(0, name))


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 28, 28), (2, 1, 64, 48), (1, 3, 13, 101)])
def test_equals_scikit_image(shape: tuple[int, ...]) -> None:
    first, second = random_images(*shape), random_images(*shape, name="others")
    expected = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert psnr(first, second).tolist() == pytest.approx(expected, rel=1e-5)
    assert pairwise_psnr(first, second).diagonal().tolist() == pytest.approx(expected, rel=1e-5)


def test_more_noise_gives_fewer_decibels() -> None:
    image = random_images(1, 1, 16, 16)
    noise = random_images(1, 1, 16, 16, name="noise") - 0.5
    assert psnr(image + 0.01 * noise, image) > psnr(image + 0.1 * noise, image) + 19


def test_an_exact_image_leaves_the_others_and_the_mean_finite() -> None:
    truths = torch.full((2, 1, 4, 4), 0.5)
    reconstructions = truths.clone()
    reconstructions[1] += 0.1
    assert psnr(reconstructions, truths).tolist() == pytest.approx([100.0, 20.0], rel=1e-5)
    assert pairwise_psnr(reconstructions, truths).max() == 100


def test_region_divides_by_its_own_pixels() -> None:
    # Errors of 0.1 in the region's 2 pixels and of 1 in the other 14: the region alone has 20 dB. Dividing by all
    # 16 pixels, as the published code does, would give 20 + 10 log10(8) = 29 dB.
    truth = torch.zeros(1, 3, 4, 4)
    reconstruction = torch.ones(1, 3, 4, 4)
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, 0, :2] = True
    reconstruction[0, :, 0, :2] = 0.1
    assert psnr(reconstruction, truth, region).item() == pytest.approx(20.0, rel=1e-5)
    assert psnr(reconstruction, truth, ~region).item() == pytest.approx(0.0, abs=1e-5)


def test_region_weights() -> None:
    # Squared errors 1 and 0.01 with weights 1 and 3: (1 + 0.03) / 4 = 0.2575, -10 log10 = 5.89223 dB.
    reconstruction = torch.tensor([1.0, 0.1]).view(1, 1, 1, 2)
    region = torch.tensor([0.25, 0.75]).view(1, 1, 2)
    assert psnr(reconstruction, torch.zeros(1, 1, 1, 2), region).item() == pytest.approx(5.89223, rel=1e-5)


def test_an_empty_region_is_not_a_number() -> None:
    images = torch.zeros(1, 1, 4, 4)
    assert psnr(images, images, torch.zeros(1, 4, 4, dtype=torch.bool)).isnan().all()


def test_pairwise_has_reconstructions_as_rows() -> None:
    reconstructions, truths = random_images(3, 1, 8, 8), random_images(70, 1, 8, 8, name="others")
    matrix = pairwise_psnr(reconstructions, truths)
    assert matrix.shape == (3, 70)
    assert matrix[2, 69] == pytest.approx(psnr(reconstructions[2:], truths[69:]).item(), rel=1e-5)
    assert matrix[0, 5] == pytest.approx(psnr(reconstructions[:1], truths[5:6]).item(), rel=1e-5)


def test_unequal_shapes_are_refused_instead_of_broadcast() -> None:
    with pytest.raises(DataError, match=r"\(1, 1, 4, 4\) and truths \(2, 1, 4, 4\)"):
        check_same_shape(torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4))
