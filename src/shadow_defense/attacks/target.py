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


@dataclass(frozen=True)
class Target:
    """What to match and how to simulate it.

    Attributes:
        parameters: the global model's, as leaves; ``observed`` holds the update of each, in the same order.
        buffers: clones of the global model's.
        labels: one for each image that is sought.
        local: the training to simulate: the client's own, or one average step.
        notes: assumptions, in words.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    observed: list[Tensor]
    labels: Int64[Tensor, "n"]
    local: LocalTraining
    notes: tuple[str, ...]


def matching_target(observation: Observation, longest_unroll: int) -> Target:
    """Decide how many images to seek and how to simulate the client.

    One step, or few enough to unroll: all of the client's images. More than ``longest_unroll`` steps: one batch,
    the update taken as one average step. Without knowledge of the local training: one step over all samples.
    """
    parameters, buffers = split_state(observation.model, observation.global_state)
    observed = [observation.update.tensors[name].detach() for name in parameters]
    samples = observation.update.samples
    notes = []
    if observation.grants("local training"):
        local, count = observation.local_training, samples
        if local.steps > longest_unroll:
            count = min(local.batch_size, samples)
            notes.append(f"{local.steps} local steps taken as one average step; {count} of {samples} images sought")
            local = as_single_step(local)
    else:
        local, count = LocalTraining(1.0, samples, 1), samples
        notes.append("local training unknown: the update taken as one step on all images")
    if observation.grants("labels"):
        everyone = observation.labels
        # Evenly through the sorted labels: the sought images get the client's own mixture.
        labels = everyone[(torch.arange(count) * len(everyone)) // count]
    else:
        gradients = {name: -update for name, update in zip(parameters, observed, strict=True)}
        labels = recover_labels(head_bias_gradient(observation.model, gradients), count)
        notes.append("labels recovered from the last layer's update")
    return Target(parameters, buffers, observed, labels, local, tuple(notes))
