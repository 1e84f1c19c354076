"""Optimal noise: numbers worked out by hand, exact Jacobians, finite differences, where noise goes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.optimal_noise import (
    OPTIMAL_NOISE_PRESETS,
    OptimalNoiseDefense,
    OptimalNoiseSettings,
    disclosure_weights,
    gradients_and_sensitivities,
    noise_deviations,
    prune_largest,
)
from shadow_defense.errors import DefenseError
from shadow_defense.models.functional import split_state
from shadow_defense.seeds import named_generator

Build = Callable[..., nn.Module]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def made(seed: int = 0, **settings: Any) -> OptimalNoiseDefense:
    return OptimalNoiseDefense(OptimalNoiseSettings(**settings), seed)


def test_numbers_of_the_specification() -> None:
    weights = disclosure_weights({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 4.0])})
    assert weights["w"].tolist() == [1.0, 2.0]
    found = noise_deviations(weights, 0.1)["w"]
    torch.testing.assert_close(found, torch.tensor([0.0632456, 0.1264911]), rtol=1e-6, atol=0)
    # The same two in tensors of their own: one root mean square for all.
    apart = noise_deviations({"a": weights["w"][:1], "b": weights["w"][1:]}, 0.1)
    torch.testing.assert_close(flat(apart), found)


def test_weights_are_bounded_where_the_gradient_is_nothing() -> None:
    """J / |g| = 4 for g = -.25; 1e-3 / 1e-8 = 1e5 for g = 0; at most 1e6; 0 where both are."""
    gradients = {"w": torch.tensor([-0.25, 0.0, 0.0, 0.0])}
    weights = disclosure_weights(gradients, {"w": torch.tensor([1.0, 1e-3, 1.0, 0.0])})
    torch.testing.assert_close(weights["w"], torch.tensor([2.0, math.sqrt(1e5), 1e3, 0.0]))


def test_layers_weigh_by_their_norms() -> None:
    """||J|| / ||g|| is 5 / 1.25 = 4 and 1 / 4: weights 2 and .5, the square of whose mean is (2 * 4 + .25) / 3."""
    gradients = {"a": torch.tensor([0.75, -1.0]), "b": torch.tensor([[4.0]])}
    weights = disclosure_weights(gradients, {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[1.0]])}, "layer")
    assert weights["a"].tolist() == [2.0, 2.0] and weights["b"].tolist() == [[0.5]]
    found = noise_deviations(weights, 1.0)
    assert found["b"].item() == pytest.approx(0.5 / math.sqrt(2.75))


@given(
    values=st.lists(st.floats(0, 1e3), min_size=1, max_size=20).filter(lambda values: max(values) > 1e-3),
    noise=st.floats(1e-6, 10),
)
def test_the_noise_has_the_root_mean_square_asked_for(values: list[float], noise: float) -> None:
    weights = {"a": torch.tensor(values, dtype=torch.float64), "b": torch.ones(2, 2, dtype=torch.float64)}
    deviations = flat(noise_deviations(weights, noise))
    assert deviations.square().mean().sqrt().item() == pytest.approx(noise)
    torch.testing.assert_close(deviations * weights["b"][0, 0], flat(weights) * deviations[-1])


def test_weights_of_zero_give_the_same_noise_everywhere() -> None:
    assert noise_deviations({"w": torch.zeros(3)}, 0.2)["w"].tolist() == [pytest.approx(0.2)] * 3


def exact_sensitivities(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The norms of whole rows of the Jacobian of the gradient, by autograd."""
    parameters, buffers = split_state(model, model)
    inputs = images.clone().requires_grad_()
    loss = F.cross_entropy(functional_call(model, {**parameters, **buffers}, (inputs,)), labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    return {
        name: torch.stack(
            [torch.autograd.grad(entry, inputs, retain_graph=True)[0].norm() for entry in gradient.flatten()]
        ).reshape(gradient.shape)
        for name, gradient in zip(parameters, gradients, strict=True)
    }


@pytest.mark.slow
def test_many_directions_estimate_the_exact_jacobian() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    images, labels = normal(2, 1, 2, 2, seed=1, dtype=torch.float64), torch.tensor([0, 1])
    exact = exact_sensitivities(model, images, labels)
    gradients, found = gradients_and_sensitivities(
        model, *split_state(model, model), images, labels, F.cross_entropy, directions=300, draws=seeded()
    )
    # The relative standard deviation of each is sqrt(2 / 300) / 2, 4 percent.
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, exact[name], rtol=0.17, atol=0)
    wanted = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    for tensor, expected in zip(gradients.values(), wanted, strict=True):
        torch.testing.assert_close(tensor, expected)


def test_one_direction_against_a_finite_difference(build: Build) -> None:
    model = build("batch").double().eval()
    images, labels = normal(3, 1, 16, 16, seed=1, dtype=torch.float64), torch.tensor([0, 1, 1])
    _, found = gradients_and_sensitivities(
        model, *split_state(model, model), images, labels, F.cross_entropy, directions=1, draws=seeded(7)
    )
    direction = torch.randn(images.shape, generator=seeded(7), dtype=torch.float64)
    ahead, behind = (
        torch.autograd.grad(F.cross_entropy(model(images + step * direction), labels), list(model.parameters()))
        for step in (1e-5, -1e-5)
    )
    for tensor, one, other in zip(found.values(), ahead, behind, strict=True):
        torch.testing.assert_close(tensor, ((one - other) / 2e-5).abs(), rtol=1e-4, atol=1e-8)


def test_pruning_takes_the_largest_weights_of_all_tensors() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[4.0, 5.0]])}
    weights = {"a": torch.tensor([0.1, 0.9, 0.2]), "b": torch.tensor([[0.8, 0.3]])}
    pruned = prune_largest(tensors, weights, 40.0)
    assert pruned["a"].tolist() == [1.0, 0.0, 3.0] and pruned["b"].tolist() == [[0.0, 5.0]]
    assert flat(prune_largest(tensors, weights, 59.9)).tolist() == [1.0, 0.0, 3.0, 0.0, 5.0]
    assert not flat(prune_largest(tensors, weights, 100.0)).any()
    same = prune_largest(tensors, weights, 0.0)
    for name, tensor in same.items():
        assert torch.equal(tensor, tensors[name]) and tensor.data_ptr() != tensors[name].data_ptr()


def test_equal_weights_lose_no_more_than_their_share() -> None:
    tensors = {"a": torch.ones(1000)}
    assert prune_largest(tensors, {"a": torch.full((1000,), 1e3)}, 29.0)["a"].sum() == 710


def clean_step(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(F.cross_entropy(model(images), labels), parameters), strict=True))


def context_of(model: nn.Module, round: int = 0) -> RoundContext:
    return RoundContext(model, model.state_dict(), F.cross_entropy, round, 10, 0.1)


def sent_by(
    defense: OptimalNoiseDefense, model: nn.Module, gradients: dict[str, Tensor], batch: Batch, round: int = 0
) -> dict[str, Tensor]:
    defense.begin_round(context_of(model, round))
    return dict(defense.protect_gradients(gradients, batch, context_of(model, round)))


def batch_of(count: int = 3, side: int = 16) -> Batch:
    return Batch(normal(count, 1, side, side, seed=1), torch.arange(count) % 2, tuple(map(str, range(count))))


@pytest.mark.slow
def test_more_noise_falls_where_the_gradient_says_more_for_its_size(build: Build) -> None:
    """In units of deviations from other directions the noise is of one size everywhere; as it is, it is not."""
    model, batch = build(), batch_of(2)
    gradients = clean_step(model, batch.images, batch.labels)
    defense = made(noise=0.05)
    noise = flat(sent_by(defense, model, gradients, batch)) - flat(gradients)
    found, sensitivities = gradients_and_sensitivities(
        model, *split_state(model, model), batch.images, batch.labels, F.cross_entropy, directions=10, draws=seeded(5)
    )
    expected = flat(noise_deviations(disclosure_weights(found, sensitivities), 0.05))
    quarters = expected.argsort().chunk(4)
    sizes = [noise[quarter].abs().median().item() for quarter in quarters]
    assert sizes == sorted(sizes) and sizes[3] > 2.5 * sizes[0]
    # The median of |N(0, 1)|; the two estimates of J differ by about a quarter, their roots by half of that.
    relative = (noise / expected).abs()
    assert [relative[quarter].median().item() for quarter in quarters] == pytest.approx([0.6745] * 4, rel=0.15)


@pytest.mark.slow
def test_by_layer_every_tensor_gets_its_own_noise(build: Build) -> None:
    model, batch = build(), batch_of(2)
    gradients = clean_step(model, batch.images, batch.labels)
    defense = made(noise=0.05, scope="layer")
    sent = sent_by(defense, model, gradients, batch)
    found, sensitivities = gradients_and_sensitivities(
        model,
        *split_state(model, model),
        batch.images,
        batch.labels,
        F.cross_entropy,
        directions=10,
        draws=named_generator(0, "optimal-noise", 0, 0),
    )
    for name, deviation in noise_deviations(disclosure_weights(found, sensitivities, "layer"), 0.05).items():
        assert len(deviation.unique()) == 1
        if deviation.numel() > 500:
            noise = sent[name] - gradients[name]
            assert noise.std().item() == pytest.approx(deviation.flatten()[0].item(), rel=0.1)
    assert defense.measurements()["change_rms"] == pytest.approx(0.05, rel=0.05)


@pytest.mark.slow
def test_pruned_entries_say_more_for_their_size_than_those_sent(build: Build) -> None:
    model, batch = build(), batch_of(2)
    gradients = clean_step(model, batch.images, batch.labels)
    defense = made(mode="pruning", percent=30)
    sent = sent_by(defense, model, gradients, batch)
    found, sensitivities = gradients_and_sensitivities(
        model, *split_state(model, model), batch.images, batch.labels, F.cross_entropy, directions=10, draws=seeded(5)
    )
    weights, pruned = flat(disclosure_weights(found, sensitivities)), flat(sent) == 0
    assert int(pruned.sum()) == int(0.3 * len(weights))
    assert torch.equal(flat(sent)[~pruned], flat(gradients)[~pruned])
    assert weights[pruned].median() > 1.5 * weights[~pruned].median()
    assert defense.measurements()["zero_share"] == pytest.approx(0.3, abs=1e-3)


def test_in_training_the_update_moves_by_the_rate_times_the_noise(local_round: Callable[..., object]) -> None:
    """Buffers stay, although they move in train mode: no forward pass of the defense's moves them."""
    plain = local_round(normalisation="batch").update.tensors
    defense = made(noise=0.2, directions=2, scope="layer")
    assert defense.acts_on == {"gradients"}
    result = local_round(defense, normalisation="batch")
    squares = entries = 0.0
    for name, tensor in result.update.tensors.items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(tensor, plain[name])
        else:
            squares += float((tensor - plain[name]).square().sum())
            entries += tensor.numel()
    assert math.sqrt(squares / entries) == pytest.approx(0.1 * result.measurements["change_rms"], rel=1e-3)
    assert result.measurements["change_rms"] == pytest.approx(0.2, rel=0.1)
    assert -1 <= result.measurements["cosine"] < 0.9


def test_draws_come_from_the_named_generator_in_order() -> None:
    """First the directions, then one normal for each tensor: a linear model's step written out."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    batch = batch_of(2, side=2)
    gradients = clean_step(model, batch.images, batch.labels)
    sent = sent_by(made(4, noise=0.3, directions=3), model, gradients, batch, round=6)
    draws = named_generator(4, "optimal-noise", 6, 0)
    found, sensitivities = gradients_and_sensitivities(
        model, *split_state(model, model), batch.images, batch.labels, F.cross_entropy, directions=3, draws=draws
    )
    for name, deviation in noise_deviations(disclosure_weights(found, sensitivities), 0.3).items():
        expected = gradients[name] + deviation * torch.randn(deviation.shape, generator=draws)
        torch.testing.assert_close(sent[name], expected)


def test_every_step_round_and_client_draws_its_own_noise(build: Build) -> None:
    model, batch = build(), batch_of(2)
    gradients = clean_step(model, batch.images, batch.labels)

    def steps(seed: int, round: int) -> list[tuple[float, ...]]:
        defense = made(seed, directions=1)
        first = sent_by(defense, model, gradients, batch, round)
        second = defense.protect_gradients(gradients, batch, context_of(model, round))
        return [tuple(tensors["classifier.weight"][0, :20].tolist()) for tensors in (first, second)]

    random_state = torch.get_rng_state()
    runs = [steps(seed, round) for seed, round in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert runs[0] == runs[3] and len({sent for run in runs[:3] for sent in run}) == 6
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("settings", [{"noise": 0.0}, {"mode": "pruning", "percent": 0.0}])
def test_at_zero_strength_training_is_plain(local_round: Callable[..., object], settings: dict[str, Any]) -> None:
    plain = local_round(count=4, batch_size=2).update.tensors
    sent = local_round(made(directions=1, **settings), count=4, batch_size=2).update.tensors
    assert all(torch.equal(tensor, plain[name]) for name, tensor in sent.items())


def test_the_model_is_left_as_it_was_and_nothing_is_aliased(build: Build) -> None:
    model = build("batch").train()
    model.features.norm1.eval()
    model.features.conv0.weight.requires_grad_(False)
    model.features.add_module("dropout", nn.Dropout(0.5))
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    gradients = {name: torch.ones_like(tensor) for name, tensor in model.named_parameters() if tensor.requires_grad}
    batch = batch_of(2)
    images = batch.images.clone()
    with torch.no_grad():
        first = sent_by(made(directions=2), model, gradients, batch)
    second = sent_by(made(directions=2), model, gradients, batch)
    assert list(first) == list(gradients)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and not tensor.requires_grad
        assert tensor.data_ptr() != gradients[name].data_ptr()
        assert torch.equal(gradients[name], torch.ones_like(tensor)) and not torch.equal(tensor, gradients[name])
    assert torch.equal(batch.images, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not model.features.conv0.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_behind_a_relu_that_is_off_there_is_no_noise() -> None:
    """Its gradient is zero whatever the image is: the zeros tell which units were off."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[1].bias.data = torch.tensor([10.0, -100.0, 10.0])
    batch = batch_of(2, side=2)
    sent = sent_by(made(noise=1.0), model, clean_step(model, batch.images, batch.labels), batch)
    assert not sent["1.weight"][1].any() and sent["1.bias"][1] == 0
    assert sent["1.weight"][[0, 2]].all() and sent["3.weight"][:, [0, 2]].all()


def test_a_broken_model_is_refused(build: Build) -> None:
    model, batch = build(), batch_of(2)
    gradients = {name: torch.ones_like(tensor) for name, tensor in model.named_parameters()}
    model.classifier.weight.data.fill_(math.inf)
    with pytest.raises(DefenseError, match="is not finite"):
        sent_by(made(directions=1), model, gradients, batch)


def test_settings_and_presets() -> None:
    with pytest.raises(ValueError, match="pruning by layer"):
        OptimalNoiseSettings(mode="pruning", scope="layer")
    levels = [OptimalNoiseSettings(**OPTIMAL_NOISE_PRESETS[name]) for name in ("weak", "paper", "strong")]
    assert [each.noise for each in levels] == [1e-3, 0.01, 0.1]
    assert [each.percent for each in levels] == [20, 50, 80] and {each.directions for each in levels} == {10}
