"""Whitened coordinates have mean 0 and covariance I, and lead back to the image."""

from __future__ import annotations

import pytest
import torch

from shadow_defense.errors import DataError
from shadow_defense.protection.whitening import measure_whitening
from tests.protection.gaussian_images import gaussian_images, root_of_covariance


def test_public_images_are_white() -> None:
    public = gaussian_images(600, 0)
    whitening = measure_whitening(public)
    coordinates = whitening.coordinates(public).double()
    assert whitening.count == 144
    assert torch.allclose(coordinates.mean(dim=0), torch.zeros(144, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(torch.cov(coordinates.T), torch.eye(144, dtype=torch.float64), atol=1e-2)


def test_the_way_back() -> None:
    whitening = measure_whitening(gaussian_images(600, 0))
    images = gaussian_images(3, 1)
    assert torch.allclose(whitening.images(whitening.coordinates(images)), images, atol=1e-5)


def test_few_images_of_many_pixels_leave_a_rest_that_is_their_variance() -> None:
    public = gaussian_images(90, 0)
    whitening = measure_whitening(public)
    assert whitening.count == 60
    total = public.flatten(1).double().var(dim=0).sum()
    assert float(whitening.deviations.double().square().sum()) + 84 * whitening.rest == pytest.approx(
        float(total), rel=1e-4
    )
    identity = whitening.directions.T @ whitening.directions
    assert torch.allclose(identity, torch.eye(60), atol=1e-4)
    image = gaussian_images(1, 5)
    inside = whitening.images(whitening.coordinates(image)).flatten(1)
    assert torch.allclose(inside + whitening.outside(image), image.flatten(1), atol=1e-5)


def test_the_covariance_of_noise_is_measured_on_draws() -> None:
    whitening = measure_whitening(gaussian_images(600, 0))
    variance = torch.linspace(0.1, 0.4, 144)
    noise = variance.sqrt() * torch.randn(20_000, 144, generator=torch.Generator().manual_seed(3))
    leading = (noise @ whitening.directions / whitening.deviations)[:, :10]
    assert torch.allclose(torch.cov(leading.T), whitening.noise_covariance(variance)[:10, :10], rtol=0.1, atol=3)


def test_the_covariance_is_the_true_one_up_to_its_sample() -> None:
    whitening = measure_whitening(gaussian_images(5000, 0))
    true = root_of_covariance() @ root_of_covariance().T
    directions = whitening.directions.double()
    found = directions @ torch.diag(whitening.deviations.double() ** 2) @ directions.T
    assert torch.linalg.matrix_norm(found - true) < 0.1 * torch.linalg.matrix_norm(true)


@pytest.mark.parametrize(
    ("images", "wanted"),
    [(torch.rand(20, 1, 4, 4), "20 public images: expected at least 50"), (torch.zeros(60, 1, 4, 4), "all alike")],
)
def test_what_has_no_covariance_is_refused(images: torch.Tensor, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        measure_whitening(images)
