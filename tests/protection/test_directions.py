"""The directions are those that the classifier's answer depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError
from shadow_defense.protection import directions
from shadow_defense.protection.directions import task_directions, train_classifier
from shadow_defense.protection.whitening import measure_whitening
from tests.protection.gaussian_images import gaussian_images

IMAGES = gaussian_images(200, 0)
WHITENING = measure_whitening(IMAGES)
NORMALISATION = Normalisation((0.5,), (0.1,))


def test_of_a_linear_model_it_is_its_weight_in_whitened_coordinates() -> None:
    """logit = u^T x: g = D B^T u for every image, so the first direction is g and no other carries anything."""
    weight = torch.randn(144, generator=torch.Generator().manual_seed(1))
    linear = nn.Linear(144, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([torch.zeros(144), weight]))
    model = nn.Sequential(nn.Flatten(), linear)
    labels = torch.arange(200) % 2
    found = task_directions(model, IMAGES, labels, NORMALISATION, WHITENING, count=1, seed=0)[:, 0]
    wanted = nn.functional.normalize(weight @ WHITENING.directions * WHITENING.deviations, dim=0)
    assert abs(float(found @ wanted)) == pytest.approx(1, abs=1e-4)


def test_they_are_orthonormal_and_not_more_than_there_are() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.Tanh(), nn.Linear(4, 3))
    labels = torch.arange(200) % 3
    found = task_directions(model, IMAGES, labels, NORMALISATION, WHITENING, count=5, seed=0)
    assert torch.allclose(found.T @ found, torch.eye(5), atol=1e-5)
    with pytest.raises(DataError, match=f"expected 1 to {WHITENING.count}"):
        task_directions(model, IMAGES, labels, NORMALISATION, WHITENING, count=1000, seed=0)


@pytest.mark.slow
def test_the_classifier_learns_what_sets_the_classes_apart() -> None:
    images = IMAGES.clone()
    labels = torch.arange(200) % 2
    images[labels == 1, :, 2:5, 2:5] += 0.15
    model = train_classifier(images, labels, NORMALISATION, seed=0)
    again = train_classifier(images, labels, NORMALISATION, seed=0)
    with torch.no_grad():
        answers = model(NORMALISATION.apply(images))
    assert (answers.argmax(dim=1) == labels).float().mean() > 0.95
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    found = task_directions(model, images, labels, NORMALISATION, measure_whitening(images), count=1, seed=0)
    whitening = measure_whitening(images)
    apart = images[labels == 1].mean(dim=0) - images[labels == 0].mean(dim=0)
    picture = whitening.coloured(found.T).view(12, 12)
    inside = picture[2:5, 2:5].abs().mean()
    assert inside > 3 * picture[8:, 8:].abs().mean(), apart


def test_one_class_has_no_directions() -> None:
    with pytest.raises(DataError, match="all of one class"):
        train_classifier(IMAGES, torch.ones(200).long(), NORMALISATION, seed=0)


def test_a_classifier_of_moved_images_sees_each_batch_three_pixels_away_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of images with one bright pixel, which says where they went."""
    images = torch.zeros(64, 1, 20, 20)
    images[:, 0, 10, 10] = 1.0
    seen, build_model = list[Tensor](), directions.build_model

    def watched(*given: Any, **options: Any) -> nn.Module:
        model: nn.Module = build_model(*given, **options)
        model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        return model

    monkeypatch.setattr(directions, "build_model", watched)
    as_they_are = Normalisation((0.0,), (1.0,))
    train_classifier(images, torch.arange(64) % 2, as_they_are, seed=0, epochs=20, moved=True)
    places = {tuple(batch[0, 0].nonzero()[0].tolist()) for batch in seen}
    assert all(batch.shape == (32, 1, 20, 20) for batch in seen)
    assert {down for down, _ in places} == {right for _, right in places} == set(range(7, 14))
