"""The optimisation loop that all gradient-matching attacks share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.progress import Task

Schedule = Callable[[float], float]


class Losses(NamedTuple):
    """One evaluation: what is minimised, and its matching part alone (what restarts are chosen by)."""

    total: Float[Tensor, ""]
    matching: Float[Tensor, ""]


class Found(NamedTuple):
    """The best iterate of a search, its matching loss, and the total loss at 100 points or fewer on the way."""

    images: Float[Tensor, "n c h w"]
    matching_loss: float
    history: tuple[float, ...]


def step_schedule(progress: float, factor: float = 0.1) -> float:
    """x ``factor`` at 3/8, 5/8 and 7/8 of the iterations (Geiping et al. 2020).

    >>> [round(step_schedule(p), 4) for p in (0.0, 0.4, 0.7, 0.9)]
    [1.0, 0.1, 0.01, 0.001]
    """
    return factor ** sum(progress >= milestone for milestone in (3 / 8, 5 / 8, 7 / 8))


def cosine_schedule(progress: float, warm_up: float = 0.0) -> float:
    """Linear warm-up over the first share of the iterations, then half a cosine down to zero."""
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def search(
    losses: Callable[[Tensor], Losses],
    initial: Float[Tensor, "n c h w"],
    *,
    iterations: int,
    learning_rate: float,
    schedule: Schedule,
    bounds: tuple[Tensor, Tensor],
    betas: tuple[float, float] = (0.9, 0.999),
    signed: bool = False,
    energy_noise: float = 0.0,
    draws: torch.Generator,
    task: Task | None = None,
) -> Found:
    """Minimise ``losses(x).total`` over x by Adam, inside a box, and return the best iterate, not the last.

    Args:
        schedule: factor of the learning rate, from the share of iterations done in [0, 1).
        bounds: least and greatest value of x, which is clamped after every step.
        signed: Adam sees only the sign of the gradient (Geiping et al. 2020).
        energy_noise: after each step x moves by this times the current learning rate times N(0, 1).

    An iterate with a non-finite loss is never the best; its gradient counts as zero, so that momentum moves x on.
    """
    low, high = bounds
    x = initial.detach().clone().clamp_(low, high).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=learning_rate, betas=betas)
    best = x.detach().clone()
    best_total = torch.tensor(math.inf, device=x.device)
    best_matching = torch.tensor(math.inf, device=x.device)
    every = -(-iterations // 100)
    history: list[Tensor] = []
    for iteration in range(iterations):
        current = losses(x)
        (gradient,) = torch.autograd.grad(current.total, x)
        with torch.no_grad():
            # Comparisons stay on the device: no iteration waits for the host.
            better = current.total < best_total
            best = torch.where(better, x, best)
            best_total = torch.where(better, current.total, best_total)
            best_matching = torch.where(better, current.matching, best_matching)
            usable = torch.isfinite(current.total) & torch.isfinite(gradient).all()
            gradient = torch.where(usable, gradient, torch.zeros_like(gradient))
            x.grad = gradient.sign() if signed else gradient
            rate = learning_rate * schedule(iteration / iterations)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            if energy_noise:
                x += energy_noise * rate * torch.randn(x.shape, generator=draws).to(x)
            x.clamp_(low, high)
            if iteration % every == 0:
                history.append(current.total.detach())
        if task:
            task.advance()
    with torch.enable_grad():
        last = losses(x)
    if last.total < best_total:
        best, best_matching = x.detach(), last.matching
    return Found(best.detach(), float(best_matching), tuple(float(value) for value in history))
