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

NOTHING_IN_THE_BUFFERS = "no batch-norm statistics to match: the model or its mode leaves none in the buffers"


def buffer_momentum(observation: Observation) -> float:
    """Of the first batch-norm layer: all layers of a model share it in practice."""
    return next((layer_momentum(*item) for item in batch_norm_layers(observation.model).items()), 0.1)


def observed_statistics(
    observation: Observation, simulated: Mapping[str, BatchStatistics]
) -> dict[str, BatchStatistics]:
    """The statistics that explain the buffers; {} where the client trained in eval mode or without batch norm.

    Args:
        simulated: statistics of one simulated step, for the layers' names and sizes.
    """
    if observation.local_training.batch_norm != "train" or not simulated:
        return {}
    after = {name: tensor + observation.update.tensors[name] for name, tensor in observation.global_state.items()}
    sizes = {name: statistics.size for name, statistics in simulated.items()}
    return recover_batch_statistics(
        observation.model, observation.global_state, after, sizes, observation.local_training.steps
    )
