"""Facts of updates against hand-made ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shadow_defense.defenses.noise import NoiseDefense, NoiseSettings
from shadow_defense.experiment.audit.facts import facts_of, impossible_share
from shadow_defense.seeds import named_generator
from tests.attacks.clients import SHAPE, lenet, observation


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 10), noise=st.floats(0.0, 1.0))
def test_the_impossible_share_measures_white_noise(seed: int, classes: int, noise: float) -> None:
    draws = named_generator(seed, "share")
    scores = torch.randn(5, classes, generator=draws)
    true = torch.eye(classes)[torch.randint(classes, (5,), generator=draws)]
    weight = (scores.softmax(1) - true).T @ torch.randn(5, 5000, generator=draws)
    assert impossible_share(weight) < 1e-5
    drawn = noise * torch.randn(weight.shape, generator=draws)
    expected = noise * weight.numel() ** 0.5 / (weight + drawn).norm().item()
    assert impossible_share(weight + drawn) == pytest.approx(expected, rel=0.1, abs=1e-5)


def test_facts_of_a_trained_client() -> None:
    """Several steps leave the rows adding up to zero; noise of a known strength on the gradient is measured."""
    seen, _ = observation(lenet(), (1, 0, 1), batch_size=1, epochs=2)
    facts = facts_of(seen, seen.local_training, labels_known=True)
    assert (facts.samples, facts.steps, facts.batch_size) == (3, 6, 1)
    assert facts.noise is not None and facts.noise < 1e-3 and facts.equal < 0.1
    assert facts.exact == "chain" and facts.batch_norm is None and not facts.hard and facts.zeros < 0.01
    assert facts.image_values == torch.Size(SHAPE).numel()
    noisy, _ = observation(lenet(), (1,), learning_rate=0.1, defense=NoiseDefense(NoiseSettings(scale=0.1), seed=0))
    disturbed = facts_of(noisy, None, labels_known=True)
    assert (
        disturbed.steps is disturbed.optimiser is disturbed.loss is None
        and disturbed.noise_deviation == pytest.approx(0.01, rel=0.2)
    )


def test_a_perceptron_is_seen_to_read_the_image_itself() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 2))
    seen, _ = observation(model, (1,))
    facts = facts_of(seen, seen.local_training, labels_known=False)
    assert facts.exact == "first layer" and facts.hard and not facts.labels_known
