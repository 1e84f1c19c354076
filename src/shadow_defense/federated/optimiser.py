"""The optimisers of a client's local training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from shadow_defense.federated.settings import TrainingSettings

OptimiserName = Literal["sgd", "adam", "adamw", "rmsprop"]


def local_optimiser(
    parameters: Sequence[nn.Parameter], settings: TrainingSettings, learning_rate: float
) -> Callable[[Sequence[Tensor]], None]:
    """A function from gradients to a step of the parameters, in place; its moments begin at zero, as in every round."""
    # Here, so that the settings can be read without torch.
    import torch
    from torch.optim.sgd import sgd

    if settings.optimiser == "sgd":
        # For each parameter, once it has one. torch.optim.SGD itself imports torch's compiler, longer than a small
        # round.
        velocities: list[Tensor | None] = [None] * len(parameters)

        def descend(gradients: Sequence[Tensor]) -> None:
            with torch.no_grad():
                sgd(
                    list(parameters),
                    list(gradients),
                    velocities,
                    lr=learning_rate,
                    momentum=settings.momentum,
                    weight_decay=settings.weight_decay,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                )

        return descend
    optimiser = _adaptive(parameters, settings, learning_rate)

    def adapt(gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        optimiser.zero_grad()

    return adapt


def _adaptive(
    parameters: Sequence[nn.Parameter], settings: TrainingSettings, learning_rate: float
) -> torch.optim.Optimizer:
    import torch

    if settings.optimiser == "rmsprop":
        return torch.optim.RMSprop(
            parameters,
            lr=learning_rate,
            alpha=settings.smoothing,
            eps=settings.epsilon,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(
        parameters,
        lr=learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
