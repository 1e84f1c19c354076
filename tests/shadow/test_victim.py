"""Step 3: what the attacker would see, while nothing of the caller's changes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.models.batchnorm import batch_norm_layers, recover_batch_statistics
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.shadow.victim import victim_signals


def build(normalisation: str = "batch") -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(16, 16), seed=0)


def batch(count: int = 3) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([0, 1, 1, 0])[:count]


@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_a_backward_pass(training: bool) -> None:
    model, (images, labels) = build().train(training), batch()
    signals = victim_signals(model, images, labels, F.cross_entropy)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(images), labels).backward()
    assert signals.gradients.keys() == dict(twin.named_parameters()).keys()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(signals.gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)
        assert not signals.gradients[name].requires_grad


def test_statistics_equal_the_recovery_from_the_running_buffers() -> None:
    """One real forward pass moves the buffers; step 3's formula takes the batch's statistics out of them again."""
    model, (images, labels) = build(), batch()
    signals = victim_signals(model, images, labels, F.cross_entropy)
    before = copy.deepcopy(model.state_dict())
    model(images)
    sizes = {name: statistics.size for name, statistics in signals.statistics.items()}
    recovered = recover_batch_statistics(model, before, model.state_dict(), sizes, steps=1)
    assert recovered.keys() == signals.statistics.keys() == batch_norm_layers(model).keys()
    assert sizes["features.norm0"] == 3 * 16 * 16 and sizes["features.norm4"] == 3 * 2 * 2
    for name, statistics in signals.statistics.items():
        torch.testing.assert_close(statistics.mean, recovered[name].mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.variance, recovered[name].variance, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_callers_changes() -> None:
    model, (images, labels) = build(), batch()
    model.add_module("dropout", nn.Dropout(0.5))
    model.features.add_module("dropout", nn.Dropout(0.5))
    model.features.norm2.eval()
    F.cross_entropy(model(images), labels).backward()
    state = copy.deepcopy(model.state_dict())
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    random_state = torch.get_rng_state()
    victim_signals(model, images, labels, F.cross_entropy)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_batch_norm_gives_gradients_alone() -> None:
    signals = victim_signals(build("group"), *batch(1), F.cross_entropy)
    assert signals.statistics == {}
    assert all(torch.isfinite(gradient).all() for gradient in signals.gradients.values())
