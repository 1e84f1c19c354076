"""A verifier of patients finds them where there are any to find, and where there are none it is seen to fail."""

from __future__ import annotations

import pytest
import torch
from tests.protection.gaussian_images import draws, gaussian_images
from torch import Tensor

from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.attacks.removers.verifier import finds_patients_in_weak_noise, train_verifier
from shadow_defense.metrics.linkage import patient_ranks_above
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening

STEPS = 60


def of_patients(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Two images of each patient: a body of its own, seen under noise of a third of its deviation."""
    bodies = gaussian_images(count, seed).repeat_interleave(2, dim=0)
    views = bodies + (gaussian_images(2 * count, seed + 1) - gaussian_images(2 * count, seed + 2)) / 4
    return views.clamp(0, 1), [f"patient {place // 2}" for place in range(2 * count)]


def known(images: Tensor, groups: list[str]) -> Knowledge:
    return Knowledge(images, torch.zeros(len(images)).long(), 1, tuple(groups))


PUBLIC, GROUPS = of_patients(120, 10)
WHITENING = measure_whitening(PUBLIC)


def test_patients_are_found_under_the_texture_that_it_was_trained_on() -> None:
    texture = Covariance(WHITENING, 0.5)
    verifier = train_verifier(texture, known(PUBLIC, GROUPS), seed=0, steps=STEPS)
    assert verifier is not None
    private, groups = of_patients(60, 50)
    similarity = verifier.similarity(texture.protect(private, draws(5, len(private))), private)
    assert similarity.abs().max() <= 1 + 1e-5
    assert float(patient_ranks_above(similarity, torch.arange(len(private)), groups).mean()) > 0.7


@pytest.mark.parametrize(("shuffled", "found"), [(False, True), (True, False)])
def test_the_planted_break_is_broken_only_where_patients_look_alike(shuffled: bool, found: bool) -> None:
    order = torch.randperm(len(PUBLIC), generator=torch.Generator().manual_seed(3)) if shuffled else slice(None)
    texture = White(WHITENING, 1.0)
    assert finds_patients_in_weak_noise(texture, known(PUBLIC[order], GROUPS), seed=0, steps=STEPS) is found


def test_of_few_patients_nothing_is_learnt() -> None:
    alone, texture = known(PUBLIC, [f"patient {place}" for place in range(len(PUBLIC))]), White(WHITENING, 1.0)
    assert train_verifier(texture, alone, seed=0, steps=STEPS) is None
    assert not finds_patients_in_weak_noise(texture, alone, seed=0, steps=STEPS)
