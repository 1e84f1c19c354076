"""GradInversion with several seeds: what they agree on, what draws them there, and what it is good for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks.clients import SIDE, baseline, faces, lenet, observation, private
from torch import Tensor, nn

from shadow_defense.attacks import group_consistency
from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.consensus import consensus, matched_order, registered
from shadow_defense.attacks.group_consistency import GroupConsistency, _Pull
from shadow_defense.attacks.observation import randomised
from shadow_defense.errors import ThreatModelError
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings


def model() -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation="batch", width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)


def test_the_mean_of_the_seeds_where_nothing_can_change_places() -> None:
    candidates = torch.rand(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    agreed = consensus(candidates, torch.tensor([0, 1]), furthest=0)
    torch.testing.assert_close(agreed, candidates.mean(0).expand(3, -1, -1, -1, -1))


@settings(max_examples=30)
@given(orders=st.lists(st.permutations(range(3)), min_size=1, max_size=4))
def test_equal_labels_are_put_in_order_before_the_mean(orders: list[list[int]]) -> None:
    """Seeds that rebuilt the same images in other orders agree exactly; a mean without orders would blur them."""
    images = faces()[[1, 2, 3, 4]]
    labels = torch.tensor([5, 5, 5, 2])
    candidates = torch.stack([images, *(images[[*order, 3]] for order in orders)])
    torch.testing.assert_close(consensus(candidates, labels, furthest=0), candidates)


def test_other_labels_never_change_places() -> None:
    images = faces()[[1, 2]]
    assert matched_order(images.flip(0), images, torch.tensor([0, 1])).tolist() == [0, 1]
    assert matched_order(images.flip(0), images, torch.tensor([1, 1])).tolist() == [1, 0]


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -1), (-3, 3), (1, 2)])
def test_a_shift_is_undone(down: int, right: int) -> None:
    face = faces()[[7, 8]]
    moved = registered(face.roll((down, right), (2, 3)), face, furthest=3)
    torch.testing.assert_close(moved[..., 3:-3, 3:-3], face[..., 3:-3, 3:-3])
    assert torch.equal(registered(face, face.roll((1, 1), (2, 3)), furthest=0), face)


def test_registration_sharpens_the_consensus() -> None:
    face = faces()[[7]]
    candidates = torch.stack([face, face.roll(1, 3), face.roll(-1, 3), face.roll(1, 2)])
    plain, sharp = (consensus(candidates, torch.tensor([0]), furthest)[0] for furthest in (0, 2))
    inside = (..., slice(3, -3), slice(3, -3))
    assert (sharp - face)[inside].abs().mean() < 0.5 * (plain - face)[inside].abs().mean()


def test_the_pull_is_the_distance_from_a_consensus_that_is_held_fixed() -> None:
    """Two seeds of one pixel at 0 and 2: E is 1, each is 1 away, and is drawn to 1 from its own side."""
    settings = GroupConsistency(iterations=10, seeds=2, group=0.5, group_from=0.2, group_every=3)
    pull = _Pull(torch.tensor([0]), settings)
    candidates = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1, 1).requires_grad_()
    assert pull(candidates) is None and pull(candidates) is None
    first = pull(candidates)
    assert first is not None and first.tolist() == [0.5, 0.5]
    (gradient,) = torch.autograd.grad(first.sum(), candidates)
    assert gradient.flatten().tolist() == [-0.5, 0.5]
    # E stays 1 for two more calls.
    values = [pull(candidates.detach() + 4) for _ in range(3)]
    assert [value.tolist() for value in values if value is not None] == [[1.5, 2.5], [1.5, 2.5], [0.5, 0.5]]


SMALL = GroupConsistency(iterations=100, seeds=2)


@pytest.mark.slow
def test_rebuilds_a_face_from_noise() -> None:
    seen, _ = observation(lenet())
    found = SMALL.model_copy(update={"iterations": 170}).reconstruct(seen, seed=0)
    start = SMALL.model_copy(update={"iterations": 1, "learning_rate": 1e-9}).reconstruct(seen, seed=0)
    reached = psnr(found.images, private()).item()
    assert reached > baseline() + 5
    assert reached > psnr(start.images, private()).item() + 10
    assert found.labels.tolist() == [1] and len(found.history) <= 100
    assert any("no batch-norm statistics" in note for note in found.notes)
    # The control: nothing of the client is in the update.
    noise = SMALL.model_copy(update={"iterations": 40}).reconstruct(randomised(seen, seed=1), seed=0)
    assert psnr(noise.images, private()).item() < baseline()


@pytest.mark.slow
def test_matches_the_statistics_of_the_buffers() -> None:
    """Behind batch norm brightness and contrast are in the statistics alone."""
    seen, _ = observation(model())
    attack = SMALL.model_copy(update={"iterations": 20, "energy_noise": 0.0})
    far, near = (
        attack.model_copy(update={"batch_norm": weight}).reconstruct(seen, seed=0).images for weight in (0.0, 0.1)
    )
    assert (near.mean() - private().mean()).abs() < (far.mean() - private().mean()).abs()


@pytest.mark.slow
def test_the_group_term_brings_the_seeds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    spreads = []
    for group in (0.0, 0.01):
        ends: list[Tensor] = []
        original = group_consistency.search_jointly

        def keep(*arguments: Any, ends: list[Tensor] = ends, original: Any = original, **settings: Any) -> Any:
            found = original(*arguments, **settings)
            ends.append(found.variables[0])
            return found

        with monkeypatch.context() as patch:
            patch.setattr(group_consistency, "search_jointly", keep)
            attack = SMALL.model_copy(update={"iterations": 40, "group": group, "group_every": 10})
            attack.reconstruct(observation(lenet())[0], seed=0)
        spreads.append(ends[0].std(0).mean().item())
    assert spreads[1] < 0.5 * spreads[0]


def test_the_seed_is_chosen_by_the_matching_loss_alone() -> None:
    """The images that come back have the loss that comes back, and it is the least of the seeds'."""
    seen, _ = observation(lenet())
    attack = SMALL.model_copy(update={"iterations": 15, "group": 0.0, "energy_noise": 0.0})
    losses = [attack.model_copy(update={"seeds": seeds}).reconstruct(seen, seed=0).matching_loss for seeds in (2, 4)]
    for more, fewer in zip(losses[1:], losses, strict=False):
        assert more <= fewer * 1.01
    assert all(math.isfinite(loss) for loss in losses)


def test_one_after_the_other_gives_the_same() -> None:
    seen, _ = observation(lenet())
    attack = SMALL.model_copy(update={"iterations": 5, "group_every": 2})
    together = attack.reconstruct(seen, seed=0)
    alone = attack.model_copy(update={"seeds_at_once": 1}).reconstruct(seen, seed=0)
    torch.testing.assert_close(together.images, alone.images, rtol=0, atol=1e-2)
    assert together.matching_loss == pytest.approx(alone.matching_loss, rel=1e-2)


def test_is_registered_and_refuses_who_may_not_know() -> None:
    assert isinstance(AttackSettings(attack="gradinversion-group").build(), GroupConsistency)
    with pytest.raises(ThreatModelError, match="buffers, local training"):
        AttackSettings(attack="gradinversion-group", threat_model="eavesdropper")
