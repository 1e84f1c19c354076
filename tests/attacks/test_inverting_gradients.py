"""The fast variant: nearer to the truth in as many iterations, and nearer still in more."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.clients import SHAPE, lenet, observation, private
from torch import Tensor

from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.metrics.psnr import psnr


@pytest.mark.slow
def test_the_fast_variant_gains_on_the_published_one_and_goes_on_gaining() -> None:
    seen, _ = observation(lenet())

    def quality(**options: object) -> float:
        return psnr(InvertingGradients(**options).reconstruct(seen, seed=0).images, private()).item()

    published, fast = (quality(variant=variant, iterations=100) for variant in ("published", "fast"))
    assert fast > published + 2
    assert quality(variant="fast", iterations=200) > fast + 2


def test_a_variant_has_iterations_of_its_own() -> None:
    assert InvertingGradients(variant="fast").steps() == 200
    assert InvertingGradients().steps() == 1000
    assert InvertingGradients(variant="fast", iterations=7, restarts=9, restarts_at_once=8).steps() == 14


@pytest.mark.parametrize("relative", [False, True])
def test_a_relative_prior_is_a_factor(relative: bool) -> None:
    seen, _ = observation(lenet())
    candidates = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))

    def total(prior: float) -> Tensor:
        objective = MatchingObjective(
            seen,
            matching=cosine_distance,
            prior=lambda images: images.new_tensor(prior),
            relative_prior=relative,
            longest_unroll=1,
        )
        with objective:
            return objective(candidates).total

    without = total(0.0)
    expected = without * 1.25 if relative else without + 0.25
    torch.testing.assert_close(total(0.25), expected)
