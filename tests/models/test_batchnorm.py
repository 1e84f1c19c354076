"""What batch norm saw, and what its running buffers tell after one and after several real steps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.models.batchnorm import (
    BatchStatistics,
    BatchStatisticsRecorder,
    batch_norm_layers,
    recover_batch_statistics,
    recover_statistics,
    step_weights,
)
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings


def build(normalisation: str = "batch") -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(8, 8), seed=0).double()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layers_that_keep_running_statistics() -> None:
    assert list(batch_norm_layers(build())) == [f"features.norm{index}" for index in range(5)]
    assert batch_norm_layers(build("group")) == {}
    assert batch_norm_layers(nn.BatchNorm2d(3, track_running_stats=False)) == {}


def test_recorded_statistics_are_those_of_the_layers_input() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(12)).double()
    images = drawn(5, 3, 2, 2)
    with BatchStatisticsRecorder(layer) as recorder:
        layer(images)
        recorded = recorder.take()
        assert recorder.take() == {}
    values = images.transpose(0, 1).flatten(1).numpy()
    assert recorded["0"].size == 20 and recorded["2"].size == 5
    assert recorded["0"].mean.tolist() == pytest.approx(values.mean(1).tolist())
    # numpy's variance is the biased one by default.
    assert recorded["0"].variance.tolist() == pytest.approx(values.var(1).tolist())
    assert not any(module._forward_pre_hooks for module in layer.modules())


def test_hooks_are_gone_even_after_an_error() -> None:
    layer = nn.BatchNorm2d(3)
    with pytest.raises(KeyError), BatchStatisticsRecorder(layer):
        raise KeyError
    assert not layer._forward_pre_hooks


def test_statistics_stay_on_the_graph() -> None:
    images = drawn(2, 1, 8, 8).requires_grad_()
    model = build()
    with BatchStatisticsRecorder(model) as recorder:
        model(images)
        last = recorder.take()["features.norm4"]
    for statistic in (last.mean, last.variance):
        (gradient,) = torch.autograd.grad(statistic.square().sum(), images, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("momentum", "steps"), [(0.1, 1), (0.1, 3), (0.3, 2), (0.01, 5)])
def test_recovery_undoes_the_running_average(momentum: float, steps: int) -> None:
    """The buffer rolled forward by hand; the naive formula for one step would be wrong for more."""
    before, batches = drawn(4), drawn(steps, 4, seed=1)
    buffer = before.clone()
    for each in batches:
        buffer = (1 - momentum) * buffer + momentum * each
    recovered = recover_statistics(before, buffer, momentum, steps)
    weights = step_weights(momentum, steps)
    assert sum(weights) == pytest.approx(1)
    assert list(weights) == sorted(weights)
    expected = sum(weight * each for weight, each in zip(weights, batches, strict=True))
    torch.testing.assert_close(recovered, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 4])
def test_recovery_from_a_real_training(steps: int) -> None:
    """k steps of SGD in train mode; each step's statistics, weighted, are what the final buffers give away."""
    model = build()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    seen: list[dict[str, BatchStatistics]] = []
    with BatchStatisticsRecorder(model) as recorder:
        for step in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(model(drawn(3, 1, 8, 8, seed=step)), torch.tensor([0, 1, 1])).backward()
            seen.append(recorder.take())
            optimiser.step()
    sizes = {name: statistics.size for name, statistics in seen[0].items()}
    recovered = recover_batch_statistics(model, before, model.state_dict(), sizes, steps)
    weights = step_weights(0.1, steps)
    assert recovered.keys() == seen[0].keys()
    for name, statistics in recovered.items():
        for field in ("mean", "variance"):
            expected = sum(w * getattr(each[name], field) for w, each in zip(weights, seen, strict=True))
            torch.testing.assert_close(getattr(statistics, field), expected, rtol=1e-7, atol=1e-8)


def test_noise_on_the_buffers_cannot_make_a_variance_negative() -> None:
    model = nn.BatchNorm2d(2)
    before = {".running_mean": torch.zeros(2), ".running_var": torch.ones(2)}
    after = {".running_mean": torch.zeros(2), ".running_var": torch.tensor([0.0, 1.0])}
    recovered = recover_batch_statistics(model, before, after, {"": 8}, steps=1)
    assert recovered[""].variance.tolist() == pytest.approx([0.0, 7 / 8])
