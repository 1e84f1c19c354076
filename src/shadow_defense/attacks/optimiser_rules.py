"""A client's optimiser as a function of its gradients: exact forwards, with a slope to follow backwards."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from shadow_defense.federated.local_training import LocalTraining

Entries = Float[Tensor, "*shape"]
Moments = tuple[Entries, ...]
"""What an optimiser keeps of a tensor from one step to the next; () before the first."""

OptimiserRule = Callable[[LocalTraining, int, Entries, Entries, Moments], tuple[Entries, Moments]]
"""(training, steps taken before, gradient, parameter, moments) to what the step adds to the parameter, and moments."""


GRADIENT_ITSELF = -1.0
"""The learning rate of one step of SGD of which only the direction counts: no pass over the weights scales it."""

SOFTNESS = 0.1


def relative_to_size(mean: Entries, square: Entries, epsilon: float) -> Entries:
    """``m / (sqrt(v) + epsilon)``, backwards as if it were ``m / sqrt(v + t^2)``, t a tenth of m's root mean square.

    After one step it is ``g / (|g| + epsilon)``: of gradients far above epsilon nothing but their sign, whose own slope
    is zero. The slope of the smooth stand-in leads a search to signs that it has wrong, and most where the gradient is
    small and a sign is easily turned (the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432). Ten times
    as large a t costs 4 dB of a reconstruction, ten times as small a one nothing.
    """
    exact = mean.detach() / (square.detach().sqrt() + epsilon)
    size = SOFTNESS**2 * mean.detach().square().mean().clamp_min(1e-30)
    smooth = mean * (square + size).rsqrt()
    return exact + (smooth - smooth.detach())


def _sgd(
    local: LocalTraining, taken: int, gradient: Entries, parameter: Entries, moments: Moments
) -> tuple[Entries, Moments]:
    velocity = _decayed(local, gradient, parameter)
    if local.learning_rate == GRADIENT_ITSELF:
        return velocity, ()
    if not local.momentum:
        return -local.learning_rate * velocity, ()
    if moments:
        velocity = local.momentum * moments[0] + velocity
    return -local.learning_rate * velocity, (velocity,)


def _adam(
    local: LocalTraining, taken: int, gradient: Entries, parameter: Entries, moments: Moments
) -> tuple[Entries, Moments]:
    gradient = _decayed(local, gradient, parameter)
    first, second = local.betas
    mean, square = (1 - first) * gradient, (1 - second) * gradient.square()
    if moments:
        mean, square = first * moments[0] + mean, second * moments[1] + square
    corrected = mean / (1 - first ** (taken + 1)), square / (1 - second ** (taken + 1))
    return -local.learning_rate * relative_to_size(*corrected, local.epsilon), (mean, square)


def _adamw(
    local: LocalTraining, taken: int, gradient: Entries, parameter: Entries, moments: Moments
) -> tuple[Entries, Moments]:
    step, moments = _adam(local.without_decay(), taken, gradient, parameter, moments)
    if local.weight_decay:
        step = step - local.learning_rate * local.weight_decay * parameter
    return step, moments


def _rmsprop(
    local: LocalTraining, taken: int, gradient: Entries, parameter: Entries, moments: Moments
) -> tuple[Entries, Moments]:
    gradient = _decayed(local, gradient, parameter)
    square = (1 - local.smoothing) * gradient.square()
    if moments:
        square = local.smoothing * moments[0] + square
    step = relative_to_size(gradient, square, local.epsilon)
    if not local.momentum:
        return -local.learning_rate * step, (square,)
    if moments:
        step = local.momentum * moments[1] + step
    return -local.learning_rate * step, (square, step)


def _decayed(local: LocalTraining, gradient: Entries, parameter: Entries) -> Entries:
    return gradient + local.weight_decay * parameter if local.weight_decay else gradient


OPTIMISER_RULES: dict[str, OptimiserRule] = {"sgd": _sgd, "adam": _adam, "adamw": _adamw, "rmsprop": _rmsprop}
"""As torch.optim has them."""
