"""The loop of attacks with several restarts: all of them in one batch, several variables in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.attacks.search import Schedule
from shadow_defense.models.adam import Adam
from shadow_defense.progress import Task


class RestartLosses(NamedTuple):
    """One evaluation of every restart: what is minimised, and its matching part (what restarts are chosen by).

    ``pull`` is minimised besides, but iterates are not compared by it: it may change from iteration to iteration.
    """

    total: Float[Tensor, " r"]
    matching: Float[Tensor, " r"]
    pull: Float[Tensor, " r"] | None = None


class JointFound(NamedTuple):
    """The best iterate of every restart, its losses, and its total loss at even distances on the way."""

    variables: tuple[Tensor, ...]
    total: Float[Tensor, " r"]
    matching: Float[Tensor, " r"]
    history: Float[Tensor, "r points"]

    def best_restart(self) -> int:
        """By the matching loss alone."""
        return int(self.matching.argmin())


def ramped_schedule(progress: float, up: float, down: float) -> float:
    """Linear over the first share ``up`` of the iterations, half a cosine down over the last share ``down``.

    ``min(1, t / up) (1/2 - 1/2 cos(pi min(1, (1 - t) / down)))`` (docs/attacks.md).

    >>> [round(ramped_schedule(t, 0.05, 0.25), 3) for t in (0.0, 0.025, 0.5, 0.875, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return min(1.0, progress / up) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - progress) / down)))


def inside(low: Tensor, high: Tensor) -> Callable[[tuple[Tensor, ...]], None]:
    """A constraint of :func:`search_jointly`: every variable is clamped to a box, in place."""

    def constrain(variables: tuple[Tensor, ...]) -> None:
        for variable in variables:
            variable.clamp_(low, high)

    return constrain


def search_jointly(
    losses: Callable[[tuple[Tensor, ...]], RestartLosses],
    initial: Sequence[Tensor],
    *,
    iterations: int,
    learning_rate: float,
    schedule: Schedule,
    record_every: int,
    sign: Callable[[Tensor, float], Tensor] | None = None,
    noise: Callable[[Tensor, float], Tensor] | None = None,
    constrain: Callable[[tuple[Tensor, ...]], None] | None = None,
    patience: int | None = None,
    task: Task | None = None,
) -> JointFound:
    """Minimise every restart's total loss by Adam and return the best iterate of each, not the last.

    Adam works entry by entry and no restart's loss depends on another's variables: each restart goes the way that it
    would go alone. One whose loss or gradient is not finite gets a gradient of zeros in that iteration, so that its
    momentum moves it on, and such an iterate is never the best.

    Args:
        initial: start of each variable, of shape (r, ...) with one row a restart; left alone.
        record_every: iterations between two points of the history.
        sign: what Adam sees of a gradient, from the gradient and the share of iterations done; None: all of it.
        noise: added to each variable after the step, from the variable and the current learning rate.
        constrain: puts the variables back where they may be, in place, after every step.
        patience: the search ends where no restart's least total fell by a thousandth within so many iterations.
    """
    variables = tuple(start.detach().clone().requires_grad_() for start in initial)
    optimiser = Adam(variables)
    best = tuple(variable.detach().clone() for variable in variables)
    best_total = best_matching = torch.full((len(variables[0]),), math.inf, device=variables[0].device)
    least = best_total
    history: list[Tensor] = []
    for iteration in range(iterations):
        current = losses(variables)
        minimised = current.total if current.pull is None else current.total + current.pull
        gradients = torch.autograd.grad(minimised.sum(), variables, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            # Comparisons stay on the device: no iteration waits for the host.
            better = current.total < best_total
            best = tuple(_choose(better, new, old) for new, old in zip(variables, best, strict=True))
            best_total = torch.where(better, current.total, best_total)
            best_matching = torch.where(better, current.matching, best_matching)
            usable = torch.isfinite(minimised)
            for gradient in gradients:
                # Of values among which one is not finite the sum is not: a pass less than to look at each.
                usable = usable & torch.isfinite(gradient.flatten(1).sum(1))
            share = iteration / iterations
            seen = [_choose(usable, gradient, torch.zeros_like(gradient)) for gradient in gradients]
            if sign:
                seen = [sign(gradient, share) for gradient in seen]
            rate = learning_rate * schedule(share)
            optimiser.step(seen, rate)
            if noise:
                for variable in variables:
                    variable += noise(variable, rate)
            if constrain:
                constrain(variables)
            if iteration % record_every == 0:
                history.append(current.total.detach())
        if task:
            task.advance()
        # The host waits for the device here, once in so many iterations.
        if patience and (iteration + 1) % patience == 0:
            if bool((best_total >= 0.999 * least).all()):
                if task:
                    task.advance(iterations - iteration - 1)
                break
            least = best_total
    last = losses(variables)
    with torch.no_grad():
        better = last.total < best_total
        best = tuple(_choose(better, new, old) for new, old in zip(variables, best, strict=True))
        best_total = torch.where(better, last.total, best_total)
        best_matching = torch.where(better, last.matching, best_matching)
    return JointFound(best, best_total, best_matching, torch.stack(history, dim=1))


def _choose(rows: Bool[Tensor, " r"], new: Float[Tensor, " r *rest"], old: Float[Tensor, " r *rest"]) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)
