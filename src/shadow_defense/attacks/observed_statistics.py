"""Batch-norm statistics to match: what the uploaded buffers say of the client's batches, or those of other images."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shadow_defense.attacks.observation import Observation
from shadow_defense.models.batchnorm import (
    BatchStatistics,
    BatchStatisticsRecorder,
    batch_norm_layers,
    layer_momentum,
    recover_batch_statistics,
)
from shadow_defense.models.functional import functional_call, split_state

NOTHING_IN_THE_BUFFERS = (
    "no batch-norm statistics to match: the model or its mode leaves none in the buffers, or the client keeps them"
)

MOST_PROXIES = 256
"""Auxiliary images in the one forward pass of :func:`proxy_statistics`, evenly through all of them."""


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


def proxy_statistics(observation: Observation) -> dict[str, BatchStatistics]:
    """Those of auxiliary images under the global model, as one batch; {} for a model without batch norm.

    What stands in for the client's own where it keeps them. Raises
    :class:`ThreatModelError` where no such images are granted.
    """
    images = observation.auxiliary
    chosen = torch.linspace(0, len(images) - 1, min(MOST_PROXIES, len(images))).round().long()
    batch = observation.normalisation.apply(images.subset(chosen.numpy()).unit_images())
    parameters, buffers = split_state(observation.model, observation.global_state)
    with torch.no_grad(), BatchStatisticsRecorder(observation.model) as recorder:
        functional_call(observation.model, {**parameters, **buffers}, (batch.to(next(iter(parameters.values()))),))
        return recorder.take()
