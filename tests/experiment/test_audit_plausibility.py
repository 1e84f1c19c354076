"""States, gradients and swapped files are named and refused; what honest clients send never is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shadow_defense.errors import UpdateError
from shadow_defense.experiment.audit.plausibility import check_length, check_state, check_update
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from tests.experiment.audit_command import DIFFERENCE, MODEL, Audit

SIDE, CLASSES = 16, 5
Tensors = dict[str, Tensor]
Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

TRAININGS: dict[str, tuple[int, Optimiser]] = {
    "one step": (1, lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (40, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "weight decay": (150, lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.05)),
    "adam": (1, lambda p: torch.optim.Adam(p, 1e-3)),
    "far by adam": (100, lambda p: torch.optim.Adam(p, 3e-2)),
}
MODELS = {"lenet": "none", "convnet": "batch"}


def new(kind: str) -> nn.Module:
    settings = ModelSettings(name=kind, normalisation=MODELS[kind], width=8)
    return build_model(settings, channels=1, classes=CLASSES, image_size=(SIDE, SIDE), seed=0)


@cache
def trained(kind: str, training: str, count: int = 8, rounds: int = 1) -> tuple[nn.Module, Tensors, Tensors]:
    """The model, its state before, and the difference that a client's training makes in the last of some rounds."""
    model = new(kind)
    if rounds > 1:
        model.load_state_dict(trained(kind, training, count, rounds - 1)[0].state_dict())
    before = copy.deepcopy(model.state_dict())
    draws = torch.Generator().manual_seed(1)
    images, labels = torch.randn(count, 1, SIDE, SIDE, generator=draws), torch.arange(count) % CLASSES
    steps, build = TRAININGS[training]
    optimiser = build(list(model.parameters()))
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model, before, {name: tensor - before[name] for name, tensor in model.state_dict().items()}


def check(kind: str, update: Tensors, state: Tensors, present: int = 8) -> None:
    fresh = new(kind).state_dict()
    check_update(update, state, fresh, new(kind), what="u.pt", present=present)


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("kind", MODELS)
def test_honest_updates_pass_and_the_rest_is_named(kind: str, training: str) -> None:
    model, before, difference = trained(kind, training)
    after = {name: tensor + difference[name] for name, tensor in before.items()}
    check(kind, difference, before)
    check_state(after, before, model, "a.pt")
    model, later, further = trained(kind, training, rounds=2)
    check(kind, further, later)
    check_state(model.state_dict(), later, model, "a.pt")
    with pytest.raises(UpdateError, match="it is a state, not a difference; give it as --after"):
        check(kind, after, before)
    with pytest.raises(UpdateError, match="they seem to be swapped; give the model as --global"):
        check(kind, before, difference)
    with pytest.raises(UpdateError, match="a difference as --update"):
        check_state(difference, before, model, "a.pt")


@pytest.mark.parametrize("count", [1, 2])
def test_a_gradient_points_uphill(count: int) -> None:
    """Of so few images that most classes have none."""
    _, before, difference = trained("lenet", "one step", count)
    gradient = {name: -tensor / 0.1 for name, tensor in difference.items()}
    check("lenet", difference, before, count)
    with pytest.raises(UpdateError, match="it looks like a gradient"):
        check("lenet", gradient, before, count)


def test_a_gradient_is_too_long() -> None:
    """Forty steps' sum before a learning rate of 0.01: no training comes as far."""
    _, before, difference = trained("lenet", "momentum")
    with pytest.raises(UpdateError, match="times as long as the global model's parameters: it looks like a gradient"):
        check("lenet", {name: -tensor / 0.01 for name, tensor in difference.items()}, before)


@pytest.mark.parametrize("noise", [1e-3, 0.05, 0.3, 3.0])
@pytest.mark.parametrize("kind", MODELS)
def test_noise_is_no_gradient_however_long(kind: str, noise: float) -> None:
    _, before, difference = trained(kind, "one step", 1)
    for seed in range(10):
        draws = torch.Generator().manual_seed(seed)
        noisy = {
            name: tensor + noise * torch.randn(tensor.shape, generator=draws) for name, tensor in difference.items()
        }
        check(kind, noisy, before, present=1)


def test_a_learning_rate_bounds_the_last_bias() -> None:
    model, _, difference = trained("lenet", "momentum")
    told = LocalTraining(0.1, 8, 40, momentum=0.9)
    check_length(difference, model, told, "u.pt")
    check_length({name: 1e3 * torch.randn_like(tensor) for name, tensor in difference.items()}, model, told, "u.pt")
    with pytest.raises(UpdateError, match=r"40 steps of SGD at --learning-rate 1e-06 by 0.0004 at most"):
        check_length(difference, model, LocalTraining(1e-6, 8, 40, momentum=0.9), "u.pt")


def test_the_command_refuses_what_is_no_update(audit: Audit, tmp_path: Path) -> None:
    swapped = ("--model", "@model.yaml", "--global", "@difference.safetensors", "--update", "@global.safetensors")
    assert "swapped" in str(audit.refused(*swapped, "--samples", "1"))
    assert "--after" in str(audit.refused(*MODEL, "--update", "@after.pt", "--samples", "1"))
    form = ("--model", "@model.yaml", "--before", "@global.safetensors", "--after", "@difference.pt", "--samples", "1")
    assert "a difference as --update" in str(audit.refused(*form))
    told = ("--steps", "1", "--batch-size", "1", "--optimiser", "sgd", "--loss", "ce", "--learning-rate", "0.001")
    assert "check both" in str(audit.refused(*DIFFERENCE, *told))
