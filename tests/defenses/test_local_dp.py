"""Local DP: the clipped and noisy update, and the privacy that rounds spend together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.clipping import clip_global, global_norm
from shadow_defense.defenses.gaussian_mechanism import gaussian_epsilon
from shadow_defense.defenses.local_dp import LocalDPDefense, LocalDPSettings, privatise
from shadow_defense.errors import ConfigError
from shadow_defense.seeds import named_generator


def test_the_sigma_of_the_settings() -> None:
    assert LocalDPSettings(sensitivity=1.0).sigma() == pytest.approx(4.8448053, abs=1e-7)
    # Replace-one: two updates of norm C are at most 2 C apart.
    assert LocalDPSettings(clip=3.0).sigma() == pytest.approx(6 * 4.8448053, abs=1e-6)
    exact = LocalDPSettings(calibration="analytic", sensitivity=1.0)
    assert exact.sigma() == pytest.approx(3.730632, abs=1e-6)


def test_beyond_its_proof_the_classic_formula_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"epsilon = 2\.0.*calibration: analytic") as raised:
        DefenseSettings(defense="local-dp", options={"epsilon": 2})
    assert "\n" not in str(raised.value)
    DefenseSettings(defense="local-dp", options={"epsilon": 2, "calibration": "analytic"})


def test_without_clip_and_noise_it_is_the_identity() -> None:
    tensors = {"a": torch.randn(4), "b": torch.randn(2, 3)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    same = privatise(tensors, math.inf, 0.0, torch.Generator())
    for name, tensor in same.items():
        assert torch.equal(tensor, before[name])
        tensor += 1
        assert torch.equal(tensors[name], before[name])


def test_one_round(local_round: Callable[..., Any]) -> None:
    plain = local_round(normalisation="batch").update.tensors
    settings = LocalDPSettings(clip=0.01, epsilon=1.0, delta=1e-5)
    result = local_round(LocalDPDefense(settings, seed=3), normalisation="batch")
    buffers = {name for name in plain if "running" in name or "num_batches" in name}
    parameters = {name: tensor for name, tensor in plain.items() if name not in buffers}
    clipped, draws = clip_global(parameters, 0.01), named_generator(3, "local dp", 0, 0)
    assert global_norm(clipped) == pytest.approx(0.01, rel=1e-3)
    for name in parameters:
        noise = 0.02 * 4.8448053 * torch.randn(plain[name].shape, generator=draws)
        torch.testing.assert_close(result.update.tensors[name], clipped[name] + noise, rtol=1e-5, atol=1e-6)
    for name in buffers:
        assert torch.equal(result.update.tensors[name], plain[name])
        assert result.update.tensors[name].dtype == plain[name].dtype
    measured = result.measurements
    assert measured["norm"] == pytest.approx(global_norm(parameters), rel=1e-5) and measured["clipped_share"] == 1
    assert measured["sigma"] == pytest.approx(0.0968961, abs=1e-6)


def test_privacy_spent_over_rounds_and_a_resume(local_round: Callable[..., Any]) -> None:
    settings = LocalDPSettings(calibration="analytic", epsilon=0.5)
    defense, spent = LocalDPDefense(settings, seed=0), []
    for index in range(3):
        spent.append(local_round(defense, round=index).measurements["epsilon_spent"])
    # One round spends what was asked for; k rounds are one Gaussian release of sqrt(k) times the sensitivity.
    assert spent[0] == pytest.approx(0.5, rel=1e-6)
    assert spent[2] == pytest.approx(gaussian_epsilon(math.sqrt(3) * 2 / settings.sigma(), 1e-5), rel=1e-9)
    assert spent[0] < spent[1] < spent[2] < 3 * spent[0]
    resumed = LocalDPDefense(settings, seed=0)
    resumed.load_state_dict(defense.state_dict())
    ours, theirs = (local_round(each, round=3) for each in (defense, resumed))
    assert ours.measurements == theirs.measurements
    assert all(torch.equal(tensor, theirs.update.tensors[name]) for name, tensor in ours.update.tensors.items())


def test_too_small_a_sensitivity_is_not_believed(local_round: Callable[..., Any]) -> None:
    """Calibrated to half of 2 C, a round spends more than asked for, and the report says how much."""
    settings = LocalDPSettings(calibration="analytic", clip=1.0, sensitivity=1.0)
    spent = local_round(LocalDPDefense(settings, 0)).measurements["epsilon_spent"]
    assert spent == pytest.approx(gaussian_epsilon(2 / 3.730632, 1e-5), rel=1e-5) and spent > 2
