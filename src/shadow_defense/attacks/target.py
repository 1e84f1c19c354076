"""From an observation to what a gradient-matching attack works on: leaves, target, labels, and what it assumes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from shadow_defense.attacks.label_recovery import head_bias_gradient, recover_labels
from shadow_defense.attacks.local_steps import as_single_step
from shadow_defense.attacks.observation import LocalTraining, Observation
from shadow_defense.models.functional import split_state

LABELS_RECOVERED = "labels recovered from the last layer's update"

PARAMETERS_WITHHELD = (
    "batch norm's scales and shifts stay with the client: the global model's stand in for them, and all else is matched"
)


@dataclass(frozen=True)
class Simulation:
    """How to simulate the client, and what came of its training; all that is known without the labels.

    Attributes:
        parameters: the global model's, as leaves.
        buffers: clones of the global model's.
        sent: names of the parameters that the client shares; ``observed`` holds the update of each, in the same order.
        count: how many images are sought.
        local: the training to simulate: the client's own, or one average step.
        notes: assumptions, in words.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    sent: tuple[str, ...]
    observed: list[Tensor]
    count: int
    local: LocalTraining
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Target(Simulation):
    """A simulation with the ``labels`` of the images that are sought, one for each."""

    labels: Int64[Tensor, "n"]


def client_simulation(observation: Observation, longest_unroll: int) -> Simulation:
    """Decide how many images to seek and how to simulate the client.

    One step, or few enough to unroll: all of the client's images. More than ``longest_unroll`` steps: one batch,
    the update taken as one average step. Without knowledge of the local training: one step over all samples.
    """
    parameters, buffers = split_state(observation.model, observation.global_state)
    sent = tuple(name for name in parameters if name not in observation.update.withheld)
    observed = [observation.update.tensors[name].detach() for name in sent]
    samples = observation.update.samples
    notes = [PARAMETERS_WITHHELD] if len(sent) < len(parameters) else []
    if observation.grants("local training"):
        local, count = observation.local_training, samples
        if local.steps > longest_unroll:
            count = min(local.batch_size, samples)
            notes.append(f"{local.steps} local steps taken as one average step; {count} of {samples} images sought")
            local = as_single_step(local)
    else:
        local, count = LocalTraining(1.0, samples, 1), samples
        notes.append("local training unknown: the update taken as one step on all images")
    return Simulation(parameters, buffers, sent, observed, count, local, tuple(notes))


def inferred_labels(observation: Observation, simulation: Simulation) -> Int64[Tensor, "n"]:
    """The labels that the last layer's update gives away, sorted, whether or not the true ones are granted."""
    # The gradient points against the update.
    gradients = {name: -update for name, update in zip(simulation.sent, simulation.observed, strict=True)}
    return recover_labels(head_bias_gradient(observation.model, gradients), simulation.count)


def matching_target(observation: Observation, longest_unroll: int) -> Target:
    """:func:`client_simulation` with labels: the client's own where they are granted, inferred ones elsewhere."""
    simulation = client_simulation(observation, longest_unroll)
    notes = simulation.notes
    if observation.grants("labels"):
        everyone = observation.labels
        # Evenly through the sorted labels: the sought images get the client's own mixture.
        labels = everyone[(torch.arange(simulation.count) * len(everyone)) // simulation.count]
    else:
        labels = inferred_labels(observation, simulation)
        notes = (*notes, LABELS_RECOVERED)
    return Target(**{**vars(simulation), "notes": notes}, labels=labels)
