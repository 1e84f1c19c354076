"""SCAFFOLD's option II on what leaves: the formula by hand, and that it tells nothing but the update."""

from __future__ import annotations

import pytest
import torch

from shadow_defense.errors import UpdateError
from shadow_defense.federated.control_variates import control_change


def test_by_hand() -> None:
    """c = (1, -2), U = y - x = (-0.3, 0.6), K = 3, eta = 0.1: -c - U / 0.3 = (-1 + 1, 2 - 2)."""
    found = control_change(
        {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([-0.3, 0.6])}, steps=3, learning_rate=0.1
    )
    torch.testing.assert_close(found["w"], torch.zeros(2), atol=1e-6, rtol=0)


def test_plain_sgd_gives_the_mean_gradient() -> None:
    """With c = 0 and no defense the new variate is the mean of the local gradients, as the paper says of option II."""
    draws = torch.Generator().manual_seed(0)
    gradients, rate = torch.randn(5, 4, generator=draws), 0.2
    found = control_change({"w": torch.zeros(4)}, {"w": -rate * gradients.sum(0)}, steps=5, learning_rate=rate)
    torch.testing.assert_close(found["w"], gradients.mean(0))


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.1), (-1, 0.1), (1, 0.0), (1, float("nan")), (1, float("inf"))])
def test_without_steps_there_is_none(steps: int, rate: float) -> None:
    with pytest.raises(UpdateError, match="expected at least 1 and more than 0"):
        control_change({"w": torch.zeros(1)}, {"w": torch.zeros(1)}, steps=steps, learning_rate=rate)


def test_one_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UpdateError, match="tensor 'w' is not finite"):
        control_change({"w": torch.zeros(1)}, {"w": torch.full((1,), 1e30)}, steps=1, learning_rate=1e-30)
