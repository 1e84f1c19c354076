"""What an attacker works out about where a defense acted, before it fits anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.target import client_simulation
from shadow_defense.defenses.base import TensorPlace
from shadow_defense.federated.local_training import LocalTraining


@dataclass(frozen=True)
class Scene:
    """An observed update, in the order in which attacks compare it, as it left the place where the defense acted.

    Attributes:
        names: of the parameters that were sent.
        parameters: the global model's, by the same order.
        decayed: what weight decay alone made of them, where the defense acted before it; zeros elsewhere.
        place: where the defense acted.
        unit: length of the update for each unit of length of what the defense saw; None where several steps, or an
            unknown learning rate, leave no such number.
        whole: whether all of what the defense saw was sent.
        steps: local steps; 0 for unknown.
    """

    observation: Observation
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    update: tuple[Tensor, ...]
    decayed: tuple[Tensor, ...]
    place: TensorPlace
    unit: float | None
    whole: bool
    steps: int

    @cached_property
    def observed(self) -> list[Tensor]:
        """The update without what weight decay made of it."""
        return [update - decayed for update, decayed in zip(self.update, self.decayed, strict=True)]

    @cached_property
    def moved(self) -> list[Bool[Tensor, "..."]]:
        """Which entries more than weight decay has moved.

        Exactly, without weight decay; with it up to the rounding of the steps, ``(T + 1) eps |theta|``.
        """
        masks = []
        for observed, decayed, parameter in zip(self.observed, self.decayed, self.parameters, strict=True):
            rounding = (self.steps + 1) * torch.finfo(parameter.dtype).eps * parameter.abs()
            masks.append(observed.abs() > torch.where(decayed != 0, rounding, torch.zeros_like(rounding)))
        return masks

    def share_of_zeros(self) -> float:
        """Of all entries that were sent."""
        return 1 - sum(int(mask.sum()) for mask in self.moved) / sum(mask.numel() for mask in self.moved)


def scene(observation: Observation, place: TensorPlace) -> Scene:
    """The scene of a defense that acted at ``place``, as far as the threat model lets the attacker know."""
    simulation = client_simulation(observation, longest_unroll=1)
    parameters = tuple(simulation.parameters[name].detach() for name in simulation.sent)
    local = observation.local_training if observation.grants("local training") else None
    # What an optimiser that divides by the gradient's size makes of noise and weight decay has no such numbers.
    plain = local is not None and local.optimiser in (None, "sgd")
    factor = decay_factor(local) if local is not None and plain and place == "gradients" else 0.0
    if place == "update":
        unit = None if local is None else 1.0
    else:
        unit = local.learning_rate if local is not None and plain and local.steps == 1 else None
    return Scene(
        observation,
        simulation.sent,
        parameters,
        tuple(simulation.observed),
        tuple(factor * parameter for parameter in parameters),
        place,
        unit,
        place == "update" or len(simulation.sent) == len(simulation.parameters),
        0 if local is None else local.steps,
    )


def decay_factor(local: LocalTraining) -> float:
    """``f`` in ``Delta = f theta`` of an entry that only weight decay and momentum move over all local steps.

    >>> round(decay_factor(LocalTraining(0.1, 1, 2, weight_decay=0.5)), 6)  # (1 - 0.05)^2 - 1
    -0.0975
    """
    value, velocity = 1.0, 0.0
    for step in range(local.steps):
        velocity = (local.momentum * velocity if step else 0.0) + local.weight_decay * value
        value -= local.learning_rate * velocity
    return value - 1.0
