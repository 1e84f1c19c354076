"""Two looks at an image tell what one look under less noise does."""

from __future__ import annotations

import pytest
import torch
from tests.protection.gaussian_images import draws, gaussian_images

from shadow_defense.attacks.removers.both_looks import NAME, EarlierLook
from shadow_defense.attacks.removers.choosing import squared_errors
from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.attacks.removers.worst_case import attack, linkage
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening

PUBLIC, CLEAN = gaussian_images(600, 0), gaussian_images(200, 7)
WHITENING = measure_whitening(PUBLIC)
TEXTURE = White(WHITENING, 0.2)
KNOWLEDGE = Knowledge(PUBLIC, torch.zeros(600).long(), 1)


def test_two_looks_are_worth_one_under_half_of_the_variance() -> None:
    first, second = (TEXTURE.protect(CLEAN, draws(seed, 200)) for seed in (1, 2))
    removers = {"lmmse": LinearRemover(WHITENING, TEXTURE.view())}
    nothing, own = torch.zeros(200).long(), torch.arange(200)
    earlier = EarlierLook(TEXTURE, first)
    found = attack(TEXTURE, removers, KNOWLEDGE, second, nothing, seed=0, earlier=earlier)
    alone = White(WHITENING, 0.2 / 2**0.5)
    once = alone.protect(CLEAN, draws(3, 200))
    wanted = LinearRemover(WHITENING, alone.view()).remove(once, nothing).estimates
    error, of_one = (float(squared_errors(found.removals[name].estimates, CLEAN).mean()) for name in (NAME, "lmmse"))
    assert error == pytest.approx(float(squared_errors(wanted, CLEAN).mean()), rel=0.1)
    # The attacker believes what is better, without having seen the truth.
    assert float(squared_errors(found.estimates, CLEAN).mean()) == pytest.approx(error, rel=0.02)
    assert error < 0.9 * of_one
    gallery = gaussian_images(2000, 9)
    gallery[:200] = CLEAN
    once, twice = (
        float(linkage(TEXTURE, second, found.estimates, gallery, own, None, None, look)["rank1"].mean())
        for look in (None, earlier)
    )
    assert twice > once
