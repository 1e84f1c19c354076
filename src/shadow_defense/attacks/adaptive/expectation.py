"""Expectation over transformation: the client simulated several times where its training is random."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shadow_defense.attacks.local_steps import SimulatedTraining


def expected_training(simulate: Callable[[], SimulatedTraining], draws: int) -> SimulatedTraining:
    """``1/K sum_k U_k(x)``: the mean update of ``draws`` simulations, and the last one's batch-norm statistics."""
    if draws == 1:
        return simulate()
    several = [simulate() for _ in range(draws)]
    updates = [torch.stack(each).mean(0) for each in zip(*(one.update for one in several), strict=True)]
    return SimulatedTraining(updates, several[-1].statistics)
