"""The attacks that solve instead of searching: exact where their equations hold, and refused where they cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import SHAPE, baseline, lenet, normalisation, observation, private
from torch import Tensor, nn

from shadow_defense.attacks.analytic import layer_on_the_image
from shadow_defense.attacks.build import ATTACKS, AttackSettings
from shadow_defense.attacks.fully_connected_leak import FullyConnectedLeak, leaked_input, leaked_rows
from shadow_defense.attacks.layer_chain import layer_chain
from shadow_defense.attacks.r_gap import RGAP, solve_chain
from shadow_defense.defenses.noise import NoiseDefense, NoiseSettings
from shadow_defense.errors import ModelError, UpdateError
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.variational_bottleneck import insert_bottleneck

EXACT = 1e-4


def drawn_weights(model: nn.Module) -> nn.Module:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.shape[1:].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(spread * torch.randn(parameter.shape, generator=draws))
    return model


def perceptron(hidden: int = 64, classes: int = 2) -> nn.Module:
    return drawn_weights(nn.Sequential(nn.Flatten(), nn.Linear(256, hidden), nn.ReLU(), nn.Linear(hidden, classes)))


def worst(found: Any) -> float:
    return (found.images - private(len(found.images))).abs().max().item()


@pytest.mark.parametrize("threat", ["informed server", "eavesdropper"])
@pytest.mark.parametrize("learning_rate", [0.01, 1.0])
def test_a_fully_connected_layer_leaks_its_image_exactly(threat: str, learning_rate: float) -> None:
    """The learning rate cancels: who does not know it reads the image just as well."""
    seen, _ = observation(perceptron(classes=5), (3,), classes=5, threat=threat, learning_rate=learning_rate)
    found = FullyConnectedLeak().reconstruct(seen, seed=0)
    assert worst(found) < EXACT
    assert found.matching_loss < 1e-5 and found.labels.tolist() == [3]
    assert psnr(found.images, private()).item() > baseline() + 40


def test_leaked_input_by_hand() -> None:
    """Least squares over disagreeing rows: (1 * 3 + 2 * 4) / (1 + 4); tiny updates are no smaller problem."""
    weight, bias = torch.tensor([[3.0], [4.0]]), torch.tensor([1.0, 2.0])
    assert leaked_input(weight, bias).item() == pytest.approx(2.2)
    assert leaked_input(1e-30 * weight, 1e-30 * bias).item() == pytest.approx(2.2)


def test_rows_that_saw_one_image_alone_are_taken() -> None:
    """Three inputs; two rows mix them, one has not moved."""
    inputs = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    shares = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
    shares = torch.cat([shares, torch.tensor([[0.0, 0.0, -7.0]])])
    rows = leaked_rows(shares @ inputs, shares.sum(dim=1), 3)
    assert sorted(rows.tolist()) == sorted(inputs.tolist())


def test_several_images_give_means_and_a_note() -> None:
    seen, _ = observation(perceptron(), (1, 0))
    found = FullyConnectedLeak().reconstruct(seen, seed=0)
    assert found.images.shape == (2, *SHAPE)
    assert any("weighted means" in note for note in found.notes)


def test_noise_on_the_update_reaches_the_image() -> None:
    """The least-squares estimate averages over the rows: one row alone would divide noise by a small bias."""
    noise = NoiseDefense(NoiseSettings(place="gradients", scale=1e-2), seed=0)
    seen, _ = observation(perceptron(), defense=noise)
    found = FullyConnectedLeak().reconstruct(seen, seed=0)
    assert worst(found) > 10 * EXACT
    assert psnr(found.images, private()).item() > baseline()
    weight, bias = seen.update.tensors["1.weight"], seen.update.tensors["1.bias"]
    truth = normalisation().apply(private()).flatten()
    alone = torch.stack([row / entry - truth for row, entry in zip(weight, bias, strict=True)]).square().mean(dim=1)
    together = (leaked_input(weight, bias) - truth).square().mean()
    assert together < alone.min()


def test_models_that_do_not_open_with_a_fully_connected_layer_are_refused() -> None:
    for model in (lenet(), nn.Sequential(nn.Flatten(), nn.Linear(256, 2, bias=False))):
        seen, _ = observation(model)
        with pytest.raises(ModelError, match="no fully connected layer"):
            FullyConnectedLeak().reconstruct(seen, seed=0)
    assert layer_on_the_image(perceptron(), SHAPE) == "1"


def test_a_layer_that_did_not_move_gives_nothing() -> None:
    seen, _ = observation(perceptron())
    still = {name: torch.zeros_like(tensor) for name, tensor in seen.update.tensors.items()}
    seen = replace(seen, update=replace(seen.update, tensors=still))
    with pytest.raises(UpdateError, match="did not move"):
        FullyConnectedLeak().reconstruct(seen, seed=0)


def leaky(activation: type[nn.Module] = nn.LeakyReLU) -> nn.Module:
    """Convolutions with and without stride, padding and bias, two fully connected layers."""
    return drawn_weights(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            activation(),
            nn.Conv2d(4, 12, 4, stride=2),
            activation(),
            nn.Flatten(),
            nn.Linear(588, 40),
            activation(),
            nn.Linear(40, 3),
        )
    )


def double_update(model: nn.Module, label: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State and update of a step of 0.01, in double precision: no rounding of the difference of two states."""
    model = model.double()
    images = normalisation().apply(private().double())
    loss = F.cross_entropy(model(images), torch.tensor([label]))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    update = {name: -0.01 * gradient for name, gradient in zip(names, gradients, strict=True)}
    return {name: tensor.detach() for name, tensor in model.named_parameters()}, update


@pytest.mark.slow
@pytest.mark.parametrize("build", [lenet, leaky, lambda: leaky(nn.Tanh)], ids=["lenet", "leaky relu", "tanh"])
def test_r_gap_solves_for_the_image(build: Any) -> None:
    model = build()
    links = layer_chain(model, SHAPE)
    state, update = double_update(model, 1)
    solved, still_open = solve_chain(links, state, update)
    assert still_open == ()
    solved = normalisation().invert(solved.unsqueeze(0))
    torch.testing.assert_close(solved, private().double(), rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "exact"), [(lenet, EXACT), (leaky, 1e-2)], ids=["lenet", "leaky relu"])
def test_r_gap_on_a_real_update(build: Any, exact: float) -> None:
    """What is lost is the rounding of the difference of two states in single precision, which every layer enlarges."""
    classes = 2 if build is lenet else 3
    seen, _ = observation(build(), (1,), classes=classes, threat="eavesdropper", learning_rate=1.0)
    found = RGAP().reconstruct(seen, seed=0)
    assert worst(found) < exact
    assert found.matching_loss < 1e-3 and found.labels.tolist() == [1]


def test_r_gap_says_where_there_are_too_few_equations() -> None:
    """One filter of stride 4 gives 9 + 16 for 256 pixels, one of them twice: <dW, W> = <k, W x>."""
    model = drawn_weights(nn.Sequential(nn.Conv2d(1, 1, 3, stride=4), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 2)))
    seen, _ = observation(model)
    found = RGAP().reconstruct(seen, seed=0)
    (note,) = found.notes
    assert note == "'0' leaves 232 of 256 values of its input open"
    assert worst(found) > 0.1


def test_r_gap_says_that_several_images_are_too_many() -> None:
    seen, _ = observation(lenet(), (1, 0))
    found = RGAP().reconstruct(seen, seed=0)
    assert found.images.shape == (2, *SHAPE) and torch.isfinite(found.images).all()
    assert any("several images" in note for note in found.notes)


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(256, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.second((images + self.first(images)).flatten(1))


def test_r_gap_refuses_what_is_no_chain() -> None:
    convnet = build_model(
        ModelSettings(name="convnet", normalisation="none", width=8), channels=1, classes=2, image_size=(16, 16), seed=0
    )
    headless = nn.Sequential(nn.Flatten(), nn.Linear(256, 2, bias=False))
    # Half as much leaves its first layer as goes on to the next: the code is drawn in between.
    precode = insert_bottleneck(lenet(), width=4, weight=0.1, seed=0)
    refused = (
        (convnet, "holds ReLU"),
        (Skipping(), "holds a branch"),
        (precode, "holds a branch"),
        (headless, "last bias"),
    )
    for model, reason in refused:
        seen, _ = observation(model)
        with pytest.raises(ModelError, match=reason):
            RGAP().reconstruct(seen, seed=0)
        assert not any(module._forward_pre_hooks for module in seen.model.modules())


def test_analytic_attacks_are_registered_with_the_model_they_need() -> None:
    for name in ("fully-connected-leak", "r-gap"):
        assert ATTACKS[name].model != "any"
        assert AttackSettings(attack=name, threat_model="eavesdropper").build().steps() == 1
