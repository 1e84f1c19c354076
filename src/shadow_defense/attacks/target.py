"""From an observation to what a gradient-matching attack works on: leaves, target, labels, and what it assumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from shadow_defense.attacks.equal_steps import LIKE_SIGNS, equal_share
from shadow_defense.attacks.label_recovery import evenly, recover_labels, rule_in_words
from shadow_defense.attacks.local_steps import as_single_step
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.surrogate import Surrogate
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.models.functional import split_state
from shadow_defense.models.simulated_gradient import layout_for

Beyond = Literal["averaged", "truncated", "surrogate"]
"""What becomes of more local steps than are unrolled."""

BEYOND = (
    "more local steps than that: averaged, one average step; truncated, all simulated, with gradients through the last "
    "of them alone; surrogate, one gradient of all images at a model between those before and after the round"
)
"""What the settings of attacks say of it."""

PARAMETERS_WITHHELD = (
    "batch norm's scales and shifts stay with the client: the global model's stand in for them, and all else is matched"
)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How to simulate the client, and what came of its training; all that is known without the labels.

    Attributes:
        parameters: the global model's, as leaves.
        buffers: clones of the global model's.
        sent: names of the parameters that the client shares; ``observed`` holds the update of each, in the same order.
        count: how many images are sought.
        local: the training to simulate: the client's own, or one average step.
        last: how many of the local steps the images are sought through; None: all.
        surrogate: moves ``parameters`` while the images are sought; None: they stay where they are.
        notes: assumptions, in words.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    sent: tuple[str, ...]
    observed: list[Tensor]
    count: int
    local: LocalTraining
    last: int | None = None
    surrogate: Surrogate | None = None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Target(Simulation):
    """A simulation with the ``labels`` of the images that are sought, one for each."""

    labels: Int64[Tensor, " n"]


def client_simulation(observation: Observation, longest_unroll: int, beyond: Beyond = "averaged") -> Simulation:
    """Decide how many images to seek and how to simulate the client.

    One step, or few enough to unroll: all of the client's images. More than ``longest_unroll`` steps: one batch,
    the update taken as one average step; or, ``truncated``, all images and every step simulated, with gradients through
    the last ``longest_unroll`` alone. Truncation moves no image that only earlier steps see: it takes the steps of an
    epoch or more. ``surrogate``: all images in one batch, their gradient taken between the models before and after
    (:class:`~shadow_defense.attacks.surrogate.Surrogate`). Without knowledge of the local training: one step over all
    samples.
    """
    own, buffers = split_state(observation.model, observation.global_state)
    # Both in one order: products of simulated and observed updates read them side by side.
    tried = torch.zeros(1, *observation.image_shape, device=observation.device)
    lay = layout_for(observation.model, own, buffers, tried)
    parameters = {name: lay(tensor) for name, tensor in own.items()}
    sent = tuple(name for name in parameters if name not in observation.update.withheld)
    observed = [lay(observation.update.tensors[name].detach()) for name in sent]
    samples = observation.update.samples
    notes = [PARAMETERS_WITHHELD] if len(sent) < len(parameters) else []
    last: int | None = None
    surrogate: Surrogate | None = None
    if observation.grants("local training"):
        local, count = observation.local_training, samples
        if local.optimiser is None:
            local = replace(local, optimiser=assumed_optimiser(observed))
            notes.append(f"optimiser unknown: {_assumption(local)}")
        if local.steps > longest_unroll and beyond == "truncated":
            last = longest_unroll
            notes.append(f"gradients through the last {last} of {local.steps} local steps alone")
        elif local.steps > longest_unroll and beyond == "surrogate":
            notes.append(f"{local.steps} local steps taken as one gradient between the models before and after them")
            local = replace(as_single_step(local), batch_size=samples)
            surrogate = Surrogate(parameters, dict(zip(sent, observed, strict=True)))
        elif local.steps > longest_unroll:
            count = min(local.batch_size, samples)
            notes.append(f"{local.steps} local steps taken as one average step; {count} of {samples} images sought")
            local = as_single_step(local)
    else:
        optimiser = observation.optimiser or assumed_optimiser(observed)
        local, count = LocalTraining(1.0, samples, 1, optimiser=optimiser), samples
        assumed = f"by {optimiser}" if observation.optimiser else _assumption(local)
        notes.append(f"local training unknown: the update taken as one step on all images, {assumed}")
    return Simulation(
        parameters=parameters,
        buffers=buffers,
        sent=sent,
        observed=observed,
        count=count,
        local=local,
        last=last,
        surrogate=surrogate,
        notes=tuple(notes),
    )


def assumed_optimiser(observed: Sequence[Tensor]) -> OptimiserName:
    """What an attacker who was not told takes the client's optimiser for: by its signs, or plain SGD."""
    return "adam" if equal_share(observed) >= LIKE_SIGNS else "sgd"


def _assumption(local: LocalTraining) -> str:
    if local.optimiser == "sgd":
        return "taken for SGD"
    return "taken for the first of Adam, since nearly all values are equally large"


def inferred_labels(observation: Observation, simulation: Simulation) -> Int64[Tensor, " n"]:
    """The labels that the last layer's update gives away, sorted, whether or not the true ones are granted."""
    update = dict(zip(simulation.sent, simulation.observed, strict=True))
    return recover_labels(observation, update, simulation.count)


def labels_note(observation: Observation) -> str:
    """By which rule :func:`inferred_labels` finds them, in words."""
    return f"labels recovered from the last layer's update, {rule_in_words(observation)}"


def matching_target(observation: Observation, longest_unroll: int, beyond: Beyond = "averaged") -> Target:
    """:func:`client_simulation` with labels: the client's own where they are granted, inferred ones elsewhere."""
    simulation = client_simulation(observation, longest_unroll, beyond)
    notes = simulation.notes
    if observation.grants("labels"):
        labels = evenly(observation.labels, simulation.count)
    else:
        labels = inferred_labels(observation, simulation)
        notes = (*notes, labels_note(observation))
    return Target(**{**vars(simulation), "notes": notes}, labels=labels)
