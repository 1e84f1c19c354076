"""The surrogate of many local steps: its place where that is known, and what it is worth beside one average step."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import lenet, normalisation, observation, private
from torch import Tensor, nn

from shadow_defense.attacks.analytic import explained
from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.surrogate import EVERY, Surrogate
from shadow_defense.attacks.target import Beyond, matching_target
from shadow_defense.metrics.psnr import psnr


def gradient_of(model: nn.Module, parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(torch.func.functional_call(model, parameters, (images,)), labels)
    return list(torch.autograd.grad(loss, list(parameters.values())))


@pytest.mark.parametrize("planted", [0.2, 0.3, 0.8])
def test_the_place_is_found_where_the_update_is_one_gradient_taken_there(planted: float) -> None:
    """The model before is put so far behind the place where the gradient was taken that it is the planted share."""
    model, images, labels = lenet(), normalisation().apply(private(2)), torch.tensor([0, 1])
    there = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    update = {name: -0.05 * each for name, each in zip(there, gradient_of(model, there, images, labels), strict=True)}
    before = {name: (tensor - planted * update[name]).detach().requires_grad_() for name, tensor in there.items()}
    surrogate = Surrogate(before, update)
    assert surrogate.place == 0.5

    def distance() -> Tensor:
        simulated = [-each for each in gradient_of(model, before, images, labels)]
        return cosine_distance(simulated, list(update.values()))

    for _ in range(20 * EVERY):
        surrogate.follow(distance)
    assert surrogate.place == pytest.approx(planted, abs=0.02)
    for name, tensor in there.items():
        torch.testing.assert_close(before[name], tensor, rtol=1e-3, atol=1e-2)


def many_steps(count: int = 1, epochs: int = 40, learning_rate: float = 0.01, batch_size: int = 4) -> Observation:
    seen, _ = observation(
        lenet(), (1,) * count, epochs=epochs, learning_rate=learning_rate, batch_size=min(batch_size, count)
    )
    return seen


def test_between_the_models_the_true_images_explain_what_they_do_not_at_the_first() -> None:
    """Four images in twenty steps: one gradient at the beginning is another direction than their sum."""
    seen = many_steps(4, 20, 0.003)
    images = normalisation().apply(private(4))
    target = matching_target(seen, 16, "surrogate")
    assert target.surrogate is not None and target.count == 4
    found = {}
    for place in (0.0, 0.5):
        target.surrogate.move_to(place)
        found[place] = explained(seen, target, images, target.labels)
    assert found[0.5] < 0.2 * found[0.0]


def test_what_is_rebuilt_of_many_steps() -> None:
    """A planted client of one image and forty steps: an average step comes less near."""
    seen, reached = many_steps(), dict[Beyond, float]()
    for beyond in get_args(Beyond)[::2]:
        attack = InvertingGradients(variant="fast", iterations=60, beyond=beyond)
        found = attack.reconstruct(seen, seed=0)
        reached[beyond] = psnr(found.images, private()).item()
    assert list(reached) == ["averaged", "surrogate"]
    assert reached["surrogate"] > reached["averaged"] + 5


def test_gradinversion_takes_it_too_and_the_notes_say_so() -> None:
    found = GradInversion(iterations=12, beyond="surrogate").reconstruct(many_steps(2, 20, batch_size=1), seed=0)
    assert len(found.images) == 2
    assert "40 local steps taken as one gradient between the models before and after them" in found.notes


def test_few_steps_are_unrolled_as_ever() -> None:
    seen = many_steps(1, 2)
    assert matching_target(seen, 16, "surrogate").surrogate is None
    assert AttackSettings(options={"beyond": "surrogate"}).resolved()["beyond"] == "surrogate"
    assert replace(matching_target(seen, 1, "surrogate"), surrogate=None).local.steps == 1
