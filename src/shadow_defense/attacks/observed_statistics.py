"""What the uploaded batch-norm buffers say about the client's batches."""

from __future__ import annotations

from collections.abc import Mapping

from shadow_defense.attacks.observation import Observation
from shadow_defense.models.batchnorm import (
    BatchStatistics,
    batch_norm_layers,
    layer_momentum,
    recover_batch_statistics,
)

NOTHING_IN_THE_BUFFERS = (
    "no batch-norm statistics to match: the model or its mode leaves none in the buffers, or the client keeps them"
)


def buffer_momentum(observation: Observation) -> float:
    """Of the first batch-norm layer: all layers of a model share it in practice."""
    return next((layer_momentum(*item) for item in batch_norm_layers(observation.model).items()), 0.1)


def observed_statistics(
    observation: Observation, simulated: Mapping[str, BatchStatistics]
) -> dict[str, BatchStatistics]:
    """The statistics that explain the buffers; {} where there are none to be had.

    That is where the client trained in eval mode or without batch norm, or does not share its running statistics.

    Args:
        simulated: statistics of one simulated step, for the layers' names and sizes.
    """
    if observation.local_training.batch_norm != "train" or not simulated:
        return {}
    update, before = observation.update, observation.global_state
    buffers = [f"{name}.{buffer}" for name in simulated for buffer in ("running_mean", "running_var")]
    if not set(buffers).isdisjoint(update.withheld):
        return {}
    after = {name: before[name] + update.tensors[name] for name in buffers}
    sizes = {name: statistics.size for name, statistics in simulated.items()}
    return recover_batch_statistics(observation.model, before, after, sizes, observation.local_training.steps)
