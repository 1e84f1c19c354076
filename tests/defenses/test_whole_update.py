"""What leaves under an update-space defense is protected in every tensor, under every name, or does not leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.defenses.base import Defense, RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import DefenseError
from shadow_defense.federated.sent_only import build_sent_only, needs_update_alone


class Shared(nn.Module):
    """A convolution under two names, and a head whose bias is tied to another's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.first = self.features[0]
        self.head, self.other = nn.Linear(144, 4), nn.Linear(144, 4)
        self.other.bias = self.head.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) + self.other(self.features(x))


class Teacher(nn.Module):
    """A student and the frozen moving average of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.student = nn.Linear(4, 4)
        average = torch.zeros(4, 4)
        if kind == "buffer":
            self.register_buffer("teacher", average)
        else:
            self.teacher = nn.Parameter(average, requires_grad=False)


def defense(name: str) -> Defense:
    options: dict[str, Any] = {} if name == "local-dp" else {"place": "update"}
    return build_sent_only(DefenseSettings(defense=name, options=options), "site", 0)


def context(model: nn.Module) -> RoundContext:
    return RoundContext(model, {}, F.cross_entropy, 0, 2, 1.0)


def difference(model: nn.Module) -> dict[str, Tensor]:
    """Equal where the model's own tensors are, as after any training."""
    draws, drawn = torch.Generator().manual_seed(0), dict[int, Tensor]()
    return {
        name: drawn.setdefault(tensor.data_ptr(), torch.randn(tensor.shape, generator=draws).to(tensor.dtype))
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("name", needs_update_alone())
def test_a_shared_parameter_leaves_protected_under_all_of_its_names(name: str) -> None:
    model = Shared()
    raw, made = difference(model), defense(name)
    made.begin_round(context(model))
    sent = made.protect_update(raw, context(model))
    assert list(sent) == list(raw)
    for first, second in (("features.0.weight", "first.weight"), ("head.bias", "other.bias")):
        assert torch.equal(raw[first], raw[second])
        assert torch.equal(sent[first], sent[second]) and not torch.equal(sent[second], raw[second])
    # As if it were there once: neither norm nor draws of the others change.
    once = defense(name)
    once.begin_round(context(model))
    alone = {key: tensor for key, tensor in raw.items() if not key.startswith("first.") and key != "other.bias"}
    assert all(torch.equal(sent[key], tensor) for key, tensor in once.protect_update(alone, context(model)).items())
    assert torch.equal(sent["features.1.running_mean"], raw["features.1.running_mean"])


@pytest.mark.parametrize("name", needs_update_alone())
def test_what_is_sent_under_a_second_name_alone_is_protected(name: str) -> None:
    model, made = Shared(), defense(name)
    made.begin_round(context(model))
    raw = {"first.weight": difference(model)["first.weight"]}
    assert not torch.equal(made.protect_update(raw, context(model))["first.weight"], raw["first.weight"])


def test_parameters_that_lie_on_the_same_values_get_one_noise() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    raw = {name: torch.ones(3, 3) for name in ("0.weight", "1.weight")}
    sent = defense("local-dp").protect_update(raw, context(model))
    assert torch.equal(sent["0.weight"], sent["1.weight"])


@pytest.mark.parametrize("kind", ["buffer", "frozen"])
@pytest.mark.parametrize("name", needs_update_alone())
def test_what_is_not_trained_and_moved_stays_at_home(name: str, kind: str) -> None:
    model = Teacher(kind)
    raw = difference(model)
    with pytest.raises(DefenseError, match="'teacher' of the update is no trained parameter and has changed"):
        defense(name).protect_update(raw, context(model))
    still = {**raw, "teacher": torch.zeros(4, 4)}
    assert torch.equal(defense(name).protect_update(still, context(model))["teacher"], torch.zeros(4, 4))
