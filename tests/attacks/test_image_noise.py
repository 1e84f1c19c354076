"""Subtracting Shadow Defense's noise from images that another guard protected: the attacker's codes are its own."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.attacks import clients
from torch import Tensor

from shadow_defense.attacks.adaptive.image_noise import expected_noise, neighbourhood, subtract_expected_noise
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.defenses.shadow import SHADOW
from shadow_defense.errors import GeneratorError, ThreatModelError
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.metrics.psnr import psnr
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

LABELS = (0, 1, 1)
ROUNDS = 4


@cache
def generator() -> DCGANGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DCGANGenerator(clients.SIDE, 1, 8, 4).eval()


def shadow(**changes: Any) -> ShadowSettings:
    return ShadowSettings(**{"latent_iterations": 5, "attack_iterations": 2, "strength": 0.8, **changes})


def observation(threat: str = "adaptive server", round: int = 0) -> Observation:
    seen, _ = clients.observation(clients.lenet(), LABELS)
    whole = threat_model(threat)
    update = replace(seen.update, round=round)
    return replace(seen, threat_model=whole, update=update, _generator=generator if whole.granted else None)


def protected(images: Tensor, settings: ShadowSettings, round: int = 0) -> Tensor:
    """What a client trains on whose guard has another seed than any of the attacker's."""
    normalisation = clients.normalisation()
    model = clients.lenet()
    guard = ShadowGuard(generator(), settings, mean=normalisation.mean, std=normalisation.std, seed=77)
    noisy = guard.protect(
        normalisation.apply(images),
        torch.tensor(LABELS),
        ("a", "b", "c"),
        model=model,
        global_model=model,
        loss_fn=torch.nn.functional.cross_entropy,
        round=round,
        rounds=ROUNDS,
    )
    return normalisation.invert(noisy)


def subtracted(images: Tensor, settings: ShadowSettings, seen: Observation | None = None, **changes: Any) -> Tensor:
    return subtract_expected_noise(
        images, torch.tensor(LABELS), seen or observation(), SHADOW, settings, rounds=ROUNDS, **changes
    )


@pytest.mark.parametrize(("round", "least"), [(0, 2.5), (3, 6.0)])
def test_most_of_the_noise_goes(round: int, least: float) -> None:
    """About 21 dB to begin with in the first round, 15 in the last; the truth is never seen again exactly."""
    truth = clients.private(3)
    noisy = protected(truth, shadow(), round)
    cleaned = psnr(subtracted(noisy, shadow(), observation(round=round)), truth)
    gained = cleaned - psnr(noisy, truth)
    assert (gained > least).all(), gained
    # More than the neighbourhood that it starts from.
    assert (cleaned > psnr(neighbourhood(noisy), truth) + 2).all()


@pytest.mark.parametrize("placement", ["shuffled", "uniform"])
def test_noise_in_other_places_goes_too(placement: str) -> None:
    """Which places the controls draw is not known, nor needed."""
    truth = clients.private(3)
    noisy = protected(truth, shadow(placement=placement))
    gained = psnr(subtracted(noisy, shadow(placement=placement)), truth) - psnr(noisy, truth)
    assert (gained > 1).all(), gained


def test_no_noise_no_change() -> None:
    truth = clients.private(3)
    assert torch.equal(subtracted(truth, shadow(strength=0.0)), truth)


def test_batches_are_the_clients() -> None:
    """In batches of one an image does not depend on the others."""
    images = protected(clients.private(3), shadow())
    seen = observation()
    seen = replace(seen, _local_training=replace(seen.local_training, batch_size=1))
    together = subtracted(images, shadow(), seen, iterations=1)
    alone = subtract_expected_noise(
        images[2:], torch.tensor(LABELS[2:]), seen, SHADOW, shadow(), rounds=ROUNDS, iterations=1
    )
    torch.testing.assert_close(together[2:], alone)


@pytest.mark.parametrize(
    ("threat", "missing"), [("informed server", "defense"), ("honest-but-curious server", "defense, generator")]
)
def test_what_is_not_granted_is_not_read(threat: str, missing: str) -> None:
    with pytest.raises(ThreatModelError, match=f"'the expected noise' reads {missing}, which threat model '{threat}'"):
        subtracted(clients.private(3), shadow(), observation(threat))


def test_a_run_without_generator() -> None:
    with pytest.raises(GeneratorError, match="none was given"):
        subtracted(clients.private(3), shadow(), replace(observation(), _generator=None))


def test_expected_noise_by_hand() -> None:
    """Three pixels in four without noise, one with 0.4; s = 0.1 / 0.6745, 2 s^2 = 0.043961.

    At a surplus of 0.4: 3 exp(-0.16 / 0.043961) = 0.07879 against 1, so 0.4 / 1.07879 = 0.37078.
    At 0.1: 3 exp(-0.01 / 0.043961) = 2.38964 against exp(-0.09 / 0.043961) = 0.12908, so 0.02050.
    """
    surplus = torch.tensor([[[0.1, -0.1], [0.1, 0.4]]])
    simulated = torch.tensor([[[0.0, 0.4], [0.0, 0.0]]])
    expected = torch.tensor([[[0.02050, 0.00057], [0.02050, 0.37078]]])
    torch.testing.assert_close(expected_noise(surplus, simulated), expected, atol=1e-5, rtol=0)


def test_channels_are_judged_together() -> None:
    """A surplus in one colour alone is no noise, which is on all of them."""
    simulated = torch.zeros(3, 4, 4)
    simulated[:, 0, 0] = 0.4
    surplus = torch.zeros(3, 4, 4)
    surplus[:, 1, 1] = 0.4
    surplus[0, 2, 2] = 0.4
    found = expected_noise(surplus, simulated)
    torch.testing.assert_close(found[:, 1, 1], torch.full((3,), 0.4))
    assert found[:, 2, 2].abs().max() < 1e-6


def test_neighbourhood_against_scipy() -> None:
    filters = pytest.importorskip("scipy.ndimage")
    images = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    expected = [
        [filters.generic_filter(channel, np.median, footprint=ring, mode="mirror") for channel in image]
        for image in images.numpy()
    ]
    torch.testing.assert_close(neighbourhood(images), torch.tensor(np.array(expected)))
