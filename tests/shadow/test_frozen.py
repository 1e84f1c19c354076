"""One draw a sample, whatever the model, the round and the batch."""

from __future__ import annotations

import pytest
import torch
from tests.shadow.little_guard import guard, images, net, step

from shadow_defense.errors import DataError
from shadow_defense.files import flatten_tensors, nest_tensors
from shadow_defense.shadow.guard import ShadowGuard


@pytest.mark.parametrize("placement", ["targeted", "uniform"])
def test_the_first_noise_stays(placement: str) -> None:
    made = guard(schedule="frozen", placement=placement, shadow_rounds=3)
    first = made.protect_with_details(**step())
    again = made.protect_with_details(**step(model=net(seed=9), round=2))
    assert torch.equal(again.images, first.images)
    assert first.noise.any()


def test_new_images_get_theirs_beside_known_ones() -> None:
    made = guard(schedule="frozen")
    first = made.protect_with_details(**step(images(2)))
    # The same two, with two more.
    both = made.protect_with_details(**step(images(4), round=1))
    assert torch.equal(both.images[:2], first.images)
    assert both.noise[2:].flatten(1).any(dim=1).all()


def test_it_goes_on_after_a_restart_to_the_bit() -> None:
    made, restarted = guard(schedule="frozen"), guard(schedule="frozen")
    first = made.protect_with_details(**step())
    restarted.load_state_dict(nest_tensors(flatten_tensors(made.state_dict())))
    again = restarted.protect_with_details(**step(model=net(seed=9), round=2))
    assert torch.equal(again.images, first.images)
    with pytest.raises(DataError, match="another image"):
        restarted.protect_with_details(**step(images(4).flip(0)))


def test_later_rounds_do_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    made = guard(schedule="frozen")
    made.protect_with_details(**step())
    monkeypatch.setattr(ShadowGuard, "_encode", None)
    monkeypatch.setattr(ShadowGuard, "_foreground", None)
    made.protect_with_details(**step(round=1))
