"""The low-resolution search: it rebuilds what a small image can hold, and never more."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.clients import SIDE, baseline, lenet, observation, private

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import randomised
from shadow_defense.attacks.rog import ROG, enlarged
from shadow_defense.errors import ThreatModelError
from shadow_defense.metrics.psnr import psnr

ATTACK = ROG(scale=2)


def ceiling() -> float:
    """PSNR of the face itself, made small and large again: about the most that the search can reach."""
    small = torch.nn.functional.interpolate(private(), size=(SIDE // 2,) * 2, mode="area")
    return psnr(enlarged(small, SIDE, SIDE).clamp(0, 1), private()).item()


@pytest.mark.slow
def test_rebuilds_a_face_as_far_as_a_small_image_can_hold_it() -> None:
    seen, _ = observation(lenet())
    found = ATTACK.reconstruct(seen, seed=0)
    start = ATTACK.model_copy(update={"iterations": 1, "learning_rate": 1e-9}).reconstruct(seen, seed=0)
    reached = psnr(found.images, private()).item()
    assert reached > baseline() + 2
    assert reached > psnr(start.images, private()).item() + 5
    assert reached < ceiling() + 2
    assert found.images.shape == (1, 1, SIDE, SIDE) and found.images.min() >= 0 and found.images.max() <= 1
    assert found.notes == ("sought at 8 x 8 pixels and enlarged",)
    noise = ATTACK.reconstruct(randomised(seen, seed=1), seed=0)
    assert psnr(noise.images, private()).item() < baseline()


@pytest.mark.slow
def test_several_local_steps_are_unrolled() -> None:
    seen, _ = observation(lenet(), epochs=2)
    assert psnr(ATTACK.reconstruct(seen, seed=0).images, private()).item() > baseline() + 1


def test_restarts_are_chosen_by_the_matching_loss_and_the_scale_need_not_divide_the_side() -> None:
    seen, _ = observation(lenet())
    attack = ROG(scale=3, iterations=5)
    losses = [attack.model_copy(update={"restarts": each}).reconstruct(seen, seed=0).matching_loss for each in (1, 4)]
    assert losses[1] <= 1.001 * losses[0]
    assert attack.reconstruct(seen, seed=0).notes == ("sought at 6 x 6 pixels and enlarged",)


def test_is_registered_and_refuses_who_may_not_know() -> None:
    assert isinstance(AttackSettings(attack="rog").build(), ROG)
    with pytest.raises(ThreatModelError, match="local training"):
        AttackSettings(attack="rog", threat_model="eavesdropper")
