"""Noise: its distribution, where its draws come from, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import RoundContext
from shadow_defense.defenses.build import DefenseSettings, Resources
from shadow_defense.defenses.noise import NoiseDefense, NoiseSettings, add_gaussian, add_laplace, cosine
from shadow_defense.seeds import named_generator

ADDERS = [add_gaussian, add_laplace]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("add", "distribution"), [(add_gaussian, stats.norm(scale=0.3)), (add_laplace, stats.laplace(scale=0.3))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_has_the_distribution_it_claims(
    add: Callable[..., dict[str, Tensor]], distribution: stats.rv_continuous, dtype: torch.dtype
) -> None:
    noise = add({"w": torch.full((100, 200), 7.0, dtype=dtype)}, 0.3, seeded())["w"] - 7
    assert noise.dtype == dtype
    assert stats.kstest(noise.flatten().numpy(), distribution.cdf).pvalue > 0.01
    assert noise.std().item() == pytest.approx(distribution.std(), rel=0.02)


@pytest.mark.parametrize("add", ADDERS)
@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_zero_noise_is_the_identity_without_aliasing(
    add: Callable[..., dict[str, Tensor]], values: list[float]
) -> None:
    given_tensors = {"a": torch.tensor(values), "b": torch.ones(2, 1)}
    before = {name: tensor.clone() for name, tensor in given_tensors.items()}
    same = add(given_tensors, 0.0, seeded())
    assert list(same) == ["a", "b"]
    for name, tensor in same.items():
        assert torch.equal(tensor, before[name])
        tensor += 1
        assert torch.equal(given_tensors[name], before[name])


@pytest.mark.parametrize("add", ADDERS)
def test_draws_follow_the_generator_only(add: Callable[..., dict[str, Tensor]]) -> None:
    tensors = {"a": torch.zeros(5), "b": torch.zeros(5)}
    torch.manual_seed(0)
    first = add(tensors, 1.0, seeded())
    torch.manual_seed(1)
    again, other = add(tensors, 1.0, seeded()), add(tensors, 1.0, seeded(1))
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["a"], first["b"])


def test_cosine() -> None:
    one, other = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, {"a": torch.tensor([1.0]), "b": torch.zeros(1)}
    assert cosine(one, other) == pytest.approx(0.6)
    assert cosine(one, {"a": torch.zeros(1), "b": torch.zeros(1)}) == 0


@pytest.mark.parametrize("place", ["gradients", "update"])
def test_one_step_in_training(local_round: Callable[..., object], place: str) -> None:
    """The update differs from the undefended one by the noise of the named generator: -lr times it at gradients."""
    plain = local_round(normalisation="batch").update.tensors
    defense = NoiseDefense(NoiseSettings(scale=0.2, place=place), seed=5)
    assert defense.acts_on == {place}
    noisy = local_round(defense, normalisation="batch").update.tensors
    draws = named_generator(5, "noise", 0, 0)
    parameters = [name for name in plain if "running" not in name and "num_batches" not in name]
    for name in parameters:
        noise = 0.2 * torch.randn(plain[name].shape, generator=draws)
        expected = plain[name] + (noise if place == "update" else -0.1 * noise)
        torch.testing.assert_close(noisy[name], expected, rtol=1e-5, atol=2e-6)
    for name in set(plain) - set(parameters):
        assert torch.equal(plain[name], noisy[name]) and plain[name].dtype == noisy[name].dtype
    assert len(parameters) < len(plain)


def test_noise_of_steps_rounds_and_clients_is_independent_and_can_be_drawn_again(
    local_round: Callable[..., object],
) -> None:
    class Recording(NoiseDefense):
        def protect(self, tensors, batch, context):  # type: ignore[no-untyped-def]
            noisy = super().protect(tensors, batch, context)
            seen.append((noisy["classifier.bias"] - tensors["classifier.bias"]).tolist())
            return noisy

    settings = NoiseSettings(scale=1.0)
    seen: list[list[float]] = []
    for seed, index in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        local_round(Recording(settings, seed), count=4, batch_size=2, round=index)
    assert len(seen) == 8
    assert len({tuple(round(value, 6) for value in noise) for noise in seen[:6]}) == 6
    torch.testing.assert_close(torch.tensor(seen[:2]), torch.tensor(seen[6:]), rtol=0, atol=0)


def test_independent_noise_of_t_steps_adds_up_to_its_root(local_round: Callable[..., object]) -> None:
    """Section 1: std of the update = lr sigma sqrt(T)."""
    noisy = local_round(NoiseDefense(NoiseSettings(scale=50.0), 0), count=8, batch_size=1).update.tensors
    weights = torch.cat([noisy[f"features.conv{index}.weight"].flatten() for index in range(1, 5)])
    assert weights.std().item() == pytest.approx(0.1 * 50 * math.sqrt(8), rel=0.02)


def test_measured_cosine(local_round: Callable[..., object]) -> None:
    assert local_round(NoiseDefense(NoiseSettings(scale=0.0), 0)).measurements == {"cosine": pytest.approx(1)}
    assert abs(local_round(NoiseDefense(NoiseSettings(scale=100.0), 0)).measurements["cosine"]) < 0.1


def test_each_client_has_its_own_seed_in_the_registry() -> None:
    settings = DefenseSettings(defense="noise", preset="strong", options={"distribution": "laplace"})
    no_images = ImageSet(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ())
    first, second = (
        settings.build(Resources(None, Normalisation((0.5,), (0.25,)), no_images, 2, name, seed=0))
        for name in ("site-1", "site-2")
    )
    assert isinstance(first, NoiseDefense) and isinstance(second, NoiseDefense)
    assert first.seed != second.seed
    assert (first.settings.scale, first.settings.distribution) == (0.1, "laplace")
    assert settings.acts_on() == ("gradients",)
    assert "no guarantee" in settings.kind().summary


def test_frozen_parameters_and_the_mappings_order_do_not_matter() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    model[1].weight.requires_grad_(False)
    update = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    context = RoundContext(model, update, torch.nn.functional.cross_entropy, 0, 1, 0.1)
    results = []
    for given_update in (update, dict(reversed(update.items()))):
        defense = NoiseDefense(NoiseSettings(place="update"), 0)
        defense.begin_round(context)
        results.append(defense.protect_update(given_update, context))
    assert all(torch.equal(results[0][name], results[1][name]) for name in update)
    assert not results[0]["1.weight"].any() and results[0]["0.weight"].all()
