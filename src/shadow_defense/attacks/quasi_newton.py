"""L-BFGS over any number of tensors: the optimiser of the first gradient-matching attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.progress import Task

STEPS_AT_ONCE = 20
"""Quasi-Newton steps of one iteration, torch's default."""

STALLED_AFTER = 10
"""Iterations over which the least loss must fall by a tenth for a search to go on."""


class Minimum(NamedTuple):
    """The best point met, the loss there, and the loss after each iteration."""

    variables: tuple[Tensor, ...]
    loss: float
    history: tuple[float, ...]


def quasi_newton_search(
    loss: Callable[..., Float[Tensor, ""]],
    initial: Sequence[Tensor],
    *,
    iterations: int,
    tolerance: float,
    line_search: bool,
    task: Task | None = None,
) -> Minimum:
    """Minimise ``loss(*variables)`` by L-BFGS with learning rate 1, and return the best point met, not the last.

    Args:
        iterations: at most; each of up to 20 quasi-Newton steps.
        tolerance: of the loss; the search ends when it is reached.
        line_search: strong Wolfe conditions; without, every step has its full length.

    The search also ends when the least loss fell by less than a tenth in 10 iterations, and at a loss that is not
    finite, after which L-BFGS knows no way back. A start with such a loss is returned as it came, with loss infinity.
    """
    variables = [tensor.detach().clone().requires_grad_() for tensor in initial]
    best, least = tuple(tensor.detach().clone() for tensor in initial), math.inf
    optimiser = torch.optim.LBFGS(
        variables,
        max_iter=STEPS_AT_ONCE,
        # Where to stop is decided below, in units of the loss.
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe" if line_search else None,
    )

    def evaluate() -> Tensor:
        nonlocal best, least
        current = loss(*variables)
        gradients = torch.autograd.grad(current, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        # L-BFGS reads the loss on the host at every evaluation anyway.
        value = current.item()
        if value < least:
            best, least = tuple(variable.detach().clone() for variable in variables), value
        return current.detach()

    history: list[float] = []
    lowest: list[float] = []
    for iteration in range(iterations):
        history.append(float(optimiser.step(evaluate)))
        lowest.append(least)
        if task:
            task.advance()
        stalled = len(lowest) > STALLED_AFTER and least > 0.9 * lowest[-1 - STALLED_AFTER]
        if least <= tolerance or stalled or not all(bool(torch.isfinite(variable).all()) for variable in variables):
            if task:
                task.advance(iterations - iteration - 1)
            break
    return Minimum(best, least, tuple(history))
