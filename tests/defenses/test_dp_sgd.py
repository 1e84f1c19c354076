"""DP-SGD: per-sample gradients against autograd and Opacus, the step's formula, and the privacy spent."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, Normalisation
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.dp_sgd import DPSGDDefense, DPSGDSettings, clipped_sum, per_sample_gradients
from shadow_defense.defenses.gaussian_mechanism import gaussian_epsilon
from shadow_defense.errors import DefenseError
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.seeds import named_generator

opacus = pytest.importorskip("opacus", reason="the accountant: pip install 'shadow-defense[dp]'")


def prepared(samples: int = 3, seed: int = 0, **settings: Any) -> DPSGDDefense:
    defense = DPSGDDefense(DPSGDSettings(**settings), seed)
    defense.prepare(torch.zeros(samples, 1, 16, 16), tuple(map(str, range(samples))))
    return defense


def images_and_labels(count: int, channels: int = 1, side: int = 16) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, side, side, generator=draws), torch.arange(count) % 2


def per_sample(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return per_sample_gradients(model, dict(model.named_parameters()), images, labels, F.cross_entropy)


@pytest.mark.parametrize(("samples", "mean"), [([[3, 4], [0.6, 0.8]], [0.6, 0.8]), ([[3, 4], [-0.3, 0]], [0.15, 0.4])])
def test_numbers_of_the_specification(samples: list[list[float]], mean: list[float]) -> None:
    # Split over two tensors: the norm is taken over both.
    values = torch.tensor(samples, dtype=torch.float32)
    total, norms = clipped_sum({"a": values[:, :1], "b": values[:, 1]}, 1.0)
    assert [total["a"].item() / 2, total["b"].item() / 2] == pytest.approx(mean, abs=2e-6)
    assert norms.tolist() == pytest.approx(values.norm(dim=1).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_per_sample_gradients_are_those_of_batches_of_one(name: str) -> None:
    chosen = ModelSettings(name=name, normalisation="group", width=8)
    model = build_model(chosen, channels=1, classes=2, image_size=(16, 16), seed=0)
    images, labels = images_and_labels(3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    gradients = per_sample(model, images, labels)
    for index in range(3):
        loss = F.cross_entropy(model(images[index : index + 1]), labels[index : index + 1])
        alone = torch.autograd.grad(loss, list(model.parameters()))
        for (key, gradient), expected in zip(gradients.items(), alone, strict=True):
            torch.testing.assert_close(gradient[index], expected, rtol=1e-3, atol=1e-5, msg=key)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_per_sample_gradients_are_those_of_opacus(build: Callable[..., nn.Module]) -> None:
    model, (images, labels) = build(), images_and_labels(4)
    gradients = per_sample(model, images, labels)
    wrapped = opacus.GradSampleModule(build(), loss_reduction="mean")
    F.cross_entropy(wrapped(images.requires_grad_()), labels).backward()
    theirs = {key.removeprefix("_module."): each.grad_sample for key, each in wrapped.named_parameters()}
    assert theirs.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[key], rtol=1e-3, atol=1e-5, msg=key)


def test_the_step_is_that_of_opacus_optimiser(build: Callable[..., nn.Module]) -> None:
    """Clipped sum over B without noise, from Opacus's own DPOptimizer."""
    model, (images, labels) = build(), images_and_labels(4)
    wrapped = opacus.GradSampleModule(build(), loss_reduction="mean")
    optimiser = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.7,
        expected_batch_size=4,
    )
    F.cross_entropy(wrapped(images.requires_grad_()), labels).backward()
    optimiser.pre_step()
    total, norms = clipped_sum(per_sample(model, images.detach(), labels), 0.7)
    assert norms.max() > 0.7
    for key, parameter in wrapped.named_parameters():
        torch.testing.assert_close(total[key.removeprefix("_module.")] / 4, parameter.grad, rtol=1e-3, atol=1e-5)


def test_dropout_draws_anew_for_every_sample() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 2))
    gradients = per_sample(model, torch.ones(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64))
    dropped = gradients["2.weight"][:, 0] == 0
    assert 0.3 < dropped.double().mean() < 0.7 and not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("chunk", [1, 2, 16])
def test_one_step_in_training(
    local_round: Callable[..., Any], build: Callable[..., nn.Module], client: Callable[..., ClientData], chunk: int
) -> None:
    """Delta = -lr (sum of clipped gradients + z C noise) / B; every chunk gives the same."""
    result = local_round(prepared(seed=7, clip=0.5, noise_multiplier=0.3, chunk=chunk))
    data, model, draws = client().train, build(), named_generator(7, "dp-sgd", 0, 0)
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    norms = []
    for image, label in zip((data.images.float() / 255 - 0.5) / 0.25, data.labels, strict=True):
        loss = F.cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
        for (name, tensor), gradient in zip(total.items(), gradients, strict=True):
            total[name] = tensor + gradient * min(1, 0.5 / norms[-1])
    assert max(norms) > 0.5
    for name, tensor in total.items():
        noise = 0.15 * torch.randn(tensor.shape, generator=draws)
        torch.testing.assert_close(result.update.tensors[name], -0.1 * (tensor + noise) / 3, rtol=1e-3, atol=1e-6)
    assert result.measurements["norm"] == pytest.approx(sum(norms) / 3, rel=1e-4)
    assert result.measurements["clipped_share"] == pytest.approx(sum(norm > 0.5 for norm in norms) / 3)


@pytest.mark.filterwarnings("ignore:Optimal order")
def test_without_clip_and_noise_it_is_plain_sgd(local_round: Callable[..., Any]) -> None:
    plain = local_round(None, count=5, batch_size=2, local_epochs=2)
    defense = prepared(5, clip=1e6, noise_multiplier=1e-12)
    private = local_round(defense, count=5, batch_size=2, local_epochs=2)
    for name, tensor in plain.update.tensors.items():
        torch.testing.assert_close(private.update.tensors[name], tensor, rtol=1e-2, atol=1e-5)


def test_noise_is_the_clients_and_the_rounds_own(local_round: Callable[..., Any]) -> None:
    def bias(seed: int, index: int) -> tuple[float, ...]:
        return tuple(local_round(prepared(seed=seed), round=index).update.tensors["classifier.bias"].tolist())

    assert bias(0, 0) == bias(0, 0)
    assert len({bias(0, 0), bias(0, 1), bias(1, 0)}) == 3


def opacus_epsilon(*history: tuple[float, float, int]) -> float:
    """By the accountant that Opacus's own engine steps."""
    accountant = opacus.accountants.RDPAccountant()
    for noise, rate, steps in history:
        for _ in range(steps):
            accountant.step(noise_multiplier=noise, sample_rate=rate)
    return accountant.get_epsilon(1e-5)


@pytest.mark.slow
def test_privacy_spent_over_rounds_and_a_resume(local_round: Callable[..., Any]) -> None:
    """Five images in batches of two, two epochs, three rounds: twelve steps of 2/5 and six of 1/5; six passes."""
    defense = prepared(5)
    measured = [
        local_round(defense, count=5, batch_size=2, local_epochs=2, round=index).measurements for index in range(3)
    ]
    last = measured[-1]
    assert last["epsilon_spent"] == pytest.approx(gaussian_epsilon(math.sqrt(6), 1e-5))
    assert last["epsilon_if_poisson"] == pytest.approx(opacus_epsilon((1.0, 0.4, 12), (1.0, 0.2, 6)), rel=2e-3)
    assert measured[0]["epsilon_spent"] == pytest.approx(gaussian_epsilon(math.sqrt(2), 1e-5))
    # A defense of a resumed run is not prepared again.
    resumed = DPSGDDefense(DPSGDSettings(), 0)
    resumed.load_state_dict(defense.state_dict())
    ours, theirs = (local_round(each, count=5, batch_size=2, round=3) for each in (defense, resumed))
    assert ours.measurements == theirs.measurements
    assert ours.measurements["epsilon_spent"] == pytest.approx(gaussian_epsilon(math.sqrt(7), 1e-5))
    assert all(torch.equal(tensor, theirs.update.tensors[name]) for name, tensor in ours.update.tensors.items())


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.05, 1.0, 50.0])
@pytest.mark.filterwarnings("error")
def test_the_accountant_has_orders_for_any_noise(local_round: Callable[..., Any], noise: float) -> None:
    measured = local_round(prepared(noise_multiplier=noise), batch_size=1).measurements
    assert math.isfinite(measured["epsilon_if_poisson"]) and math.isfinite(measured["epsilon_spent"])


def test_without_opacus_only_what_papers_report_is_left_out(
    local_round: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = local_round(prepared()).measurements
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    alone = local_round(prepared()).measurements
    assert whole.pop("epsilon_if_poisson") > 0
    assert alone == whole


def test_what_it_cannot_do_is_said(build: Callable[..., nn.Module]) -> None:
    prepared().check_model(build("group"))
    with pytest.raises(DefenseError, match=r"features\.norm0.*model\.normalisation=group") as raised:
        prepared().check_model(build("batch"))
    assert "\n" not in str(raised.value)
    context = RoundContext(build(), {}, F.cross_entropy, 0, 1, 0.1)
    with pytest.raises(DefenseError, match="prepare first"):
        DPSGDDefense(DPSGDSettings(), 0).begin_round(context)


def test_a_federation_refuses_batch_norm_before_anything_is_done(
    build: Callable[..., nn.Module], client: Callable[..., ClientData], tmp_path: Path
) -> None:
    class Untouched(DPSGDDefense):
        def prepare(self, *arguments: Any) -> None:
            raise AssertionError("prepared")

        def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
            raise AssertionError("trained")

    site = client()
    federation = Federation(
        build("batch"),
        FederatedDataset("tiny", (site,), site.train, site.train, ("a", "b"), Normalisation((0.5,), (0.25,))),
        {"site-1": Untouched(DPSGDSettings(), 0)},
        TrainingSettings(rounds=1),
        F.cross_entropy,
        lambda model: {},
        seed=0,
        folder=tmp_path,
    )
    with pytest.raises(DefenseError, match="batch norm"):
        federation.run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mu", [0.05, 0.5, 2.0, 20.0])
def test_the_epsilon_of_a_gaussian_release_is_opacus_own(mu: float) -> None:
    gdp = importlib.import_module("opacus.accountants.analysis.gdp")
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(gdp.eps_from_mu(mu=mu, delta=1e-5), rel=1e-9)
