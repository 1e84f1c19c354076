"""k-IIP by hand, its limits, and features against a plain forward pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shadow_defense.errors import DataError, ModelError
from shadow_defense.metrics.identifiability import identifiability_precision, identified, pooled_features
from shadow_defense.seeds import named_generator


def at_angles(*degrees: float) -> Tensor:
    radians = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([radians.cos(), radians.sin()], dim=1)


OWNED = torch.tensor([True, False, True, False, False])
GALLERY = at_angles(0, 10, 20, 90, 180)


@pytest.mark.parametrize(("nearest", "hits"), [(1, [1, 0, 0]), (2, [1, 1, 1]), (3, [2, 2, 1]), (5, [2, 2, 2])])
def test_hits_by_hand(nearest: int, hits: list[int]) -> None:
    """At 3 degrees the order is 0, 10, 20; at 11: 10, 20, 0; at 80: 90, 20, 10. Lengths must not matter."""
    found = identified(7 * at_angles(3, 11, 80), GALLERY * torch.arange(1.0, 6).view(-1, 1), OWNED, nearest)
    assert found.tolist() == hits
    assert identifiability_precision(found) == pytest.approx(sum(hits) / 3)


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), nearest=st.integers(1, 12))
def test_an_images_own_feature_is_nearest_and_all_hits_are_the_clients(seed: int, nearest: int) -> None:
    gallery = torch.randn(12, 6, generator=named_generator(seed, "gallery"))
    owned = torch.arange(12) % 3 == 0
    hits = identified(gallery, gallery, owned, nearest)
    assert (hits >= owned.long()).all()
    assert (hits <= min(nearest, 4)).all()
    if nearest == 12:
        assert (hits == 4).all()


def test_galleries_that_say_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="no 6 nearest"):
        identified(GALLERY, GALLERY, OWNED, 6)
    with pytest.raises(DataError, match="add images of others"):
        identified(GALLERY, GALLERY, torch.ones(5, dtype=torch.bool), 1)
    with pytest.raises(DataError, match="at least one"):
        identifiability_precision(torch.zeros(0, dtype=torch.int64))


def test_features_are_the_last_map_averaged_in_eval_mode() -> None:
    images = torch.randn(70, 1, 8, 8, generator=named_generator(0, "images"))
    convolution = nn.Conv2d(1, 3, 3)
    model = nn.Sequential(convolution, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = pooled_features(model, images)
    expected = convolution(images).mean(dim=(2, 3)) / (1 + 1e-5) ** 0.5
    assert torch.allclose(features, expected, atol=1e-5)
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ModelError):
        pooled_features(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), images)
