"""Simulated optimisers against torch's own, and attacks on clients that trained by them."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.clients import baseline, lenet, normalisation, observation, private, simulated
from torch import Tensor

from shadow_defense.attacks import local_steps
from shadow_defense.attacks.equal_steps import LIKE_SIGNS, equal_share
from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.label_recovery import label_rule
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.optimiser_rules import OPTIMISER_RULES, relative_to_size
from shadow_defense.attacks.target import client_simulation
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.optimiser import local_optimiser
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim

ONE_STEP = TrainingSettings(optimiser="adam", learning_rate=1e-3)

TRAININGS = (
    {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimiser": "adam", "betas": (0.8, 0.95), "epsilon": 1e-3},
    {"optimiser": "adam", "weight_decay": 0.1},
    {"optimiser": "adamw", "weight_decay": 0.1},
    {"optimiser": "rmsprop"},
    {"optimiser": "rmsprop", "momentum": 0.5, "weight_decay": 0.1, "smoothing": 0.9},
)


@pytest.mark.parametrize("values", TRAININGS, ids=lambda values: "-".join(map(str, values.values())))
@pytest.mark.parametrize("above", [0, 1000], ids=["recomputed", "plain"])
def test_simulated_steps_are_torchs(values: dict[str, object], above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs on the client's one image: what the attack simulates with it is what the client sent."""
    monkeypatch.setattr(local_steps, "RECOMPUTED_ABOVE", above)
    training = TrainingSettings(learning_rate=1e-3, local_epochs=3, **values)
    seen, _ = observation(lenet(), (1,), training=training)
    target, found = simulated(seen, normalisation().apply(private()).requires_grad_())
    for name, ours in zip(target.sent, found.update, strict=True):
        sent = seen.update.tensors[name]
        # Where the gradient is rounding alone its sign is, too.
        assert ((ours - sent).abs() <= 1e-6 + 1e-2 * sent.abs()).float().mean() > 0.99, name
    assert torch.autograd.grad(sum(each.sum() for each in found.update), [next(iter(target.parameters.values()))])


def test_the_steps_are_torchs_to_the_last_digits() -> None:
    """On gradients that are given, ten steps in float64, of the optimiser a client trains by."""
    draws = torch.Generator().manual_seed(0)
    for values in TRAININGS:
        training = TrainingSettings(learning_rate=0.1, **values)
        known = LocalTraining.of(training, 0, 1, 10)
        ours = torch.randn(7, generator=draws, dtype=torch.float64)
        theirs = torch.nn.Parameter(ours.clone())
        step, moments = local_optimiser([theirs], training, 0.1), ()
        for taken in range(10):
            gradient = torch.randn(7, generator=draws, dtype=torch.float64)
            step([gradient])
            moved, moments = OPTIMISER_RULES[training.optimiser](known, taken, gradient, ours, moments)
            ours = ours + moved
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_a_sign_has_a_slope_backwards() -> None:
    gradient = torch.tensor([3.0, -0.01, 0.0], requires_grad=True)
    step = relative_to_size(gradient, gradient.square(), 1e-8)
    torch.testing.assert_close(step.detach(), torch.tensor([1.0, -1.0, 0.0]))
    (slope,) = torch.autograd.grad(step.sum(), gradient)
    # t^2 / (g^2 + t^2)^(3/2), t a tenth of the root mean square.
    square = 0.01 * (9 + 1e-4) / 3
    expected = square / (gradient.detach().square() + square) ** 1.5
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=0)


def rebuilt(seen: Observation) -> Tensor:
    return InvertingGradients(iterations=200, restarts=1).reconstruct(seen, seed=0).images


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "rmsprop"])
def test_one_adaptive_step_gives_the_image_away(optimiser: str) -> None:
    """Far better than the mean image; an attack that takes it for SGD stays below."""
    training = ONE_STEP.model_copy(update={"optimiser": optimiser})
    seen, _ = observation(lenet(), (1,), training=training)
    images = rebuilt(seen)
    assert psnr(images, private()).item() > baseline() + 3 and ssim(images, private()).item() > 0.85
    if optimiser == "adam":
        mistaken, _ = observation(lenet(), (1,), training=training, told="sgd")
        assert psnr(rebuilt(mistaken), private()).item() < baseline()


@pytest.mark.slow
def test_two_adaptive_steps_are_unrolled() -> None:
    seen, _ = observation(lenet(), (1,), training=ONE_STEP.model_copy(update={"local_epochs": 2}))
    assert psnr(rebuilt(seen), private()).item() > baseline() + 3


@pytest.mark.slow
def test_who_is_not_told_reads_signs_off_the_update() -> None:
    """Without any knowledge of the training a first step of Adam is told from SGD, and attacked as what it is."""
    seen, _ = observation(lenet(), (1,), training=ONE_STEP, threat="eavesdropper")
    simulation = client_simulation(seen, longest_unroll=1)
    assert simulation.local.optimiser == "adam" and "first of Adam" in simulation.notes[0]
    assert psnr(rebuilt(seen), private()).item() > baseline() + 3
    for training, most in ((TrainingSettings(), 0.05), (ONE_STEP, LIKE_SIGNS / 2)):
        other, _ = observation(lenet(), (1, 0, 0, 1), training=training, batch_size=1, threat="eavesdropper")
        assert equal_share([other.update.tensors[name] for name in simulation.sent]) < most
        assert client_simulation(other, longest_unroll=1).local.optimiser == "sgd"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_other_losses_are_attacked_as_what_they_are(loss: str) -> None:
    training = TrainingSettings(learning_rate=0.1, loss=loss)
    seen, _ = observation(lenet(), (1,), training=training)
    assert psnr(rebuilt(seen), private()).item() > baseline() + 3


def test_labels_of_many_steps_are_counted_for_sgd_on_cross_entropy_alone() -> None:
    rules = [
        label_rule(observation(lenet(), (1,), training=TrainingSettings(local_epochs=2, **values))[0])
        for values in ({}, {"optimiser": "adam"}, {"loss": "bce"})
    ]
    assert rules == ["multi-step", "bias-corrected", "bias-corrected"]


def test_the_label_of_one_image_is_read_off_signs() -> None:
    seen, _ = observation(lenet(5), (3,), classes=5, training=ONE_STEP, threat="informed eavesdropper")
    found = InvertingGradients(iterations=1, restarts=1).reconstruct(seen, seed=0)
    assert found.labels.tolist() == [3]
