"""The modern parts of Inverting Gradients, by numbers worked out by hand, and the whole on a face."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import baseline, lenet, observation, private
from torch import nn

from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.modern_inverting import (
    head_features,
    leaked_features,
    opponent_variation,
    soft_sign,
    tiled_start,
)
from shadow_defense.metrics.psnr import psnr


def test_soft_signs_go_from_tanh_to_the_gradient_itself() -> None:
    gradient = torch.tensor([-3.0, 0.1, 0.5])
    torch.testing.assert_close(soft_sign(gradient, 0.0), gradient.tanh())
    torch.testing.assert_close(soft_sign(gradient, 0.999), gradient, rtol=1e-4, atol=0)


def test_opponent_variation_by_hand() -> None:
    """A white pixel in the middle: two neighbours see one difference, it sees two; colours differ nowhere."""
    grey = torch.zeros(1, 1, 3, 3)
    grey[..., 1, 1] = 1
    expected = (2 * 1 + math.sqrt(2)) / 9
    assert opponent_variation(grey).item() == pytest.approx(expected, rel=1e-4)
    assert opponent_variation(grey.repeat(1, 3, 1, 1)).item() == pytest.approx(expected / 2, rel=1e-4)
    red = torch.cat([grey, torch.zeros(1, 2, 3, 3)], dim=1)
    # Red itself, red - green and red - blue of six channels.
    assert opponent_variation(red).item() == pytest.approx(expected / 2, rel=1e-4)


def test_opponent_variation_has_a_finite_gradient_on_a_flat_image() -> None:
    flat = torch.zeros(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(opponent_variation(flat), flat)
    assert torch.equal(gradient, torch.zeros_like(flat))


def test_tiles() -> None:
    start = tiled_start((2, 1, 10, 9), 4, torch.Generator().manual_seed(0))
    assert start.shape == (2, 1, 10, 9)
    assert torch.equal(start[..., 4:8, 4:8], start[..., :4, :4]) and torch.equal(start[..., 8:, :], start[..., :2, :])
    assert start[..., :4, :4].unique().numel() == 32


def test_the_last_layer_gives_its_features_away() -> None:
    """Exactly what the layer read, of one image; with any learning rate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Sigmoid(), nn.Linear(5, 3))
    image = torch.randn(1, 1, 4, 4)
    F.cross_entropy(model(image), torch.tensor([2])).backward()
    updates = {name: -0.3 * tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
    leaked = leaked_features(model, updates, torch.tensor([2]))
    assert leaked is not None
    torch.testing.assert_close(leaked, head_features(model, model.state_dict(), image))
    assert not model[3]._forward_pre_hooks
    assert leaked_features(model, {"3.weight": updates["3.weight"]}, torch.tensor([2])) is None
    assert leaked_features(model, {**updates, "3.bias": torch.zeros(3)}, torch.tensor([2])) is None


@pytest.mark.slow
def test_the_modern_variant_rebuilds_a_face() -> None:
    seen, _ = observation(lenet())
    attack = InvertingGradients(variant="modern", iterations=300, total_variation=1e-3)
    found = attack.reconstruct(seen, seed=0)
    assert psnr(found.images, private()).item() > baseline() + 5
    assert found.notes == ()
    assert torch.equal(attack.model_copy(update={"iterations": 2}).reconstruct(seen, seed=0).labels, found.labels)


def test_modern_restarts_in_one_batch() -> None:
    seen, _ = observation(lenet(), (0, 1))
    attack = InvertingGradients(variant="modern", iterations=4, restarts=3)
    together = attack.reconstruct(seen, seed=0)
    apart = attack.model_copy(update={"restarts_at_once": 1}).reconstruct(seen, seed=0)
    torch.testing.assert_close(together.images, apart.images, rtol=0, atol=1e-3)
