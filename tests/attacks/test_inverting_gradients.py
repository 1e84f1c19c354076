"""The fast variant: nearer to the truth in as many iterations, and nearer still in more."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.attacks.clients import SHAPE, baseline, lenet, observation, private
from torch import Tensor

from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.metrics.fidelity import score_reconstructions
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim


@pytest.mark.slow
def test_the_fast_variant_gains_on_the_published_one_and_goes_on_gaining() -> None:
    seen, _ = observation(lenet())

    def quality(**options: object) -> float:
        return psnr(InvertingGradients(**options).reconstruct(seen, seed=0).images, private()).item()

    published, fast = (quality(variant=variant, iterations=100) for variant in ("published", "fast"))
    assert fast > published + 2
    assert quality(variant="fast", iterations=200) > fast + 2


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["signs", "noise"])
def test_the_fast_variant_rebuilds_what_cannot_be_matched_closely(hidden: str) -> None:
    """A step of RMSprop, which is nearly signs, and one under noise 0.3 times as long as it: above the mean image."""
    training = TrainingSettings(optimiser="rmsprop", learning_rate=1e-3) if hidden == "signs" else None
    seen, _ = observation(lenet(), training=training)
    if hidden == "noise":
        draws, sent = torch.Generator().manual_seed(0), seen.update.tensors
        noise = {name: torch.randn(tensor.shape, generator=draws) for name, tensor in sent.items()}
        lengths = [torch.cat([each.flatten() for each in part.values()]).norm() for part in (sent, noise)]
        noisy = {name: tensor + 0.3 * lengths[0] / lengths[1] * noise[name] for name, tensor in sent.items()}
        seen = replace(seen, update=replace(seen.update, tensors=noisy))
    images = InvertingGradients(variant="fast", iterations=150).reconstruct(seen, seed=0).images
    assert psnr(images, private()).item() > baseline() + 3 and ssim(images, private()).item() > 0.85


def test_a_variant_has_iterations_of_its_own() -> None:
    assert InvertingGradients(variant="fast").steps() == 200
    assert InvertingGradients().steps() == 1000
    assert InvertingGradients(variant="fast", iterations=7, restarts=9, restarts_at_once=8).steps() == 14


def total(seen: Observation, images: int, prior: float, *, relative: bool = True) -> Tensor:
    """Of two candidates of so many images, by an objective whose prior is that number."""
    candidates = torch.randn(2, images, *SHAPE, generator=torch.Generator().manual_seed(0))
    objective = MatchingObjective(
        seen,
        matching=cosine_distance,
        prior=lambda images: images.new_tensor(prior),
        relative_prior=1.0 if relative else None,
        longest_unroll=4,
    )
    with objective:
        return objective(candidates).total


@pytest.mark.parametrize("relative", [False, True])
def test_a_relative_prior_is_a_factor(relative: bool) -> None:
    seen, _ = observation(lenet())
    without = total(seen, 1, 0.0, relative=relative)
    expected = without * 1.25 if relative else without + 0.25
    torch.testing.assert_close(total(seen, 1, 0.25, relative=relative), expected)


@pytest.mark.parametrize(
    ("client", "factors"),
    [
        ({}, 3),
        ({"epochs": 2}, 1),
        ({"told": "rmsprop"}, 1),
        ({"threat": "honest-but-curious server"}, 3),
        ({"threat": "eavesdropper"}, 1),
    ],
)
def test_each_image_of_one_plain_step_has_a_factor_of_its_own(client: dict[str, Any], factors: int) -> None:
    seen, _ = observation(lenet(), (0, 1, 1), **client)
    torch.testing.assert_close(total(seen, 3, 0.25), total(seen, 3, 0.0) * 1.25**factors)


@pytest.mark.slow
def test_images_of_one_update_come_nearer_with_a_factor_each() -> None:
    """Eight images, three models; than with one factor for all, as where nothing says that it was one step."""

    def quality(seed: int, steps: int) -> float:
        seen, _ = observation(lenet(seed=seed), (0, 0, 0, 0, 1, 1, 1, 1))
        seen = replace(seen, update=replace(seen.update, steps=steps))
        found = InvertingGradients(variant="fast", iterations=100).reconstruct(seen, seed=seed).images
        return statistics.fmean(row["psnr_whole"] or 0.0 for row in score_reconstructions(found, private(8)))

    each, shared = (statistics.fmean(quality(seed, steps) for seed in range(3)) for steps in (1, 0))
    assert each > shared + 0.5
