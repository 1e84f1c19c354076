"""The misfit of a reconstruction, beside images whose update is known."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.attacks.clients import lenet, observation, private, public
from tests.attacks.test_adaptive_attack import defended
from torch import Tensor

from shadow_defense.attacks.misfit import JUDGE, misfit
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.defenses.build import DefenseSettings


def rebuilt(images: Tensor, labels: tuple[int, ...] = (1,)) -> Reconstruction:
    return Reconstruction(images, torch.tensor(labels), 0.5, 1, 0.1)


def of(seen: Observation, images: Tensor, labels: tuple[int, ...] = (1,)) -> float:
    found = misfit(seen, rebuilt(images, labels), 0)
    assert found is not None
    return found


def test_the_truth_leaves_nothing_unexplained_and_another_image_much() -> None:
    seen, _ = observation(lenet(), threat=JUDGE)
    assert of(seen, private()) < 1e-6 < 0.01 < of(seen, public()[:1])


def test_several_steps_are_all_simulated() -> None:
    """Two epochs of a client with two batches; one average step would not explain them."""
    seen, _ = observation(lenet(), (0, 0, 1, 1), threat=JUDGE, epochs=2, batch_size=4)
    assert seen.local_training.steps == 2
    assert of(seen, private(4), (0, 0, 1, 1)) < 1e-6
    # Of half of the images one step is what they explain: not everything.
    assert of(seen, private(2), (0, 0)) > 1e-3


def test_what_the_defense_let_pass_is_what_is_compared() -> None:
    """The truth explains a tenth of the gradient's entries; the plain cosine of the rest holds that against it."""
    seen = defended(lenet(), "gradient-sparsification", percent=90.0)
    unaware = replace(seen, _defense=DefenseSettings())
    assert of(seen, private()) < 0.5 * of(unaware, private())


def test_images_that_are_not_finite_have_none() -> None:
    seen, _ = observation(lenet(), threat=JUDGE)
    assert misfit(seen, rebuilt(torch.full((1, 1, 16, 16), torch.nan)), 0) is None
