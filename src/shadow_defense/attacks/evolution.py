"""CMA-ES over latent codes, which needs no gradient: the package ``cma`` does the evolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.joint_search import JointFound, RestartLosses
from shadow_defense.progress import Task

LARGEST_FULL_COVARIANCE = 1000
"""Above this many entries the covariance is kept diagonal: a full one takes the square of their number in memory."""


def evolve(
    losses: Callable[[Tensor], RestartLosses],
    mean: Float[Tensor, " n *code"],
    deviation: Float[Tensor, "*code"],
    *,
    iterations: int,
    population: int,
    draws: torch.Generator,
    task: Task | None = None,
) -> JointFound:
    """Minimise the total loss by CMA-ES and return the best codes that were tried, as one restart.

    The first population is drawn from N(mean, deviation^2), what codes of the generator look like. A loss that is
    not finite counts as worse than all others. Converging early is no end: the remaining iterations are told to
    ``task`` and left out.
    """
    # Not at the top: the package comes with an extra.
    import cma

    def as_codes(points: np.ndarray) -> Tensor:
        return mean + deviation * torch.as_tensor(points, dtype=mean.dtype, device=mean.device).view(-1, *mean.shape)

    def draw(rows: int, columns: int) -> np.ndarray:
        return torch.randn(rows, columns, generator=draws, dtype=torch.float64).numpy()

    strategy = cma.CMAEvolutionStrategy(
        np.zeros(mean.numel()),
        1.0,
        {
            "popsize": population,
            # The package would seed numpy's global state, and listen to a file in the working directory.
            "seed": np.nan,
            "randn": draw,
            "verbose": -10,
            "verb_log": 0,
            "CMA_diagonal": mean.numel() > LARGEST_FULL_COVARIANCE,
        },
    )
    best = mean.unsqueeze(0)
    best_total = best_matching = mean.new_full((1,), torch.inf)
    every = -(-iterations // 100)
    history = []
    for iteration in range(iterations):
        if strategy.stop():
            if task:
                task.advance(iterations - iteration)
            break
        points = np.stack(strategy.ask())
        candidates = as_codes(points)
        current = losses(candidates)
        total = torch.where(torch.isfinite(current.total), current.total, torch.inf).detach()
        # The strategy sorts by loss and takes differences: infinity would make them not a number.
        worst = total[torch.isfinite(total)].max() if torch.isfinite(total).any() else torch.tensor(1.0)
        strategy.tell(list(points), torch.where(torch.isfinite(total), total, worst + 1).double().tolist())
        first = int(total.argmin())
        if total[first] < best_total[0]:
            best, best_total = candidates[first : first + 1], total[first : first + 1]
            best_matching = current.matching[first : first + 1]
        if iteration % every == 0:
            history.append(total[first])
        if task:
            task.advance()
    return JointFound((best,), best_total, best_matching, torch.stack(history).unsqueeze(0))
