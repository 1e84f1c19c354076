"""Step 3, pseudo local training: what the attacker would get to see, without taking the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import DefenseError
from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction, loss_gradients, split_state


@dataclass(frozen=True)
class VictimSignals:
    """The clean batch's gradient of every trainable parameter, and its statistics at every batch-norm layer."""

    gradients: Mapping[str, Tensor]
    statistics: Mapping[str, BatchStatistics]


def victim_signals(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Tensor, loss_fn: LossFunction
) -> VictimSignals:
    """One forward and backward pass of the local model on the clean batch, in the mode the model is in.

    Parameters, gradients, buffers and the global random state of the caller stay as they were. The statistics are
    recorded where they arise, which gives what step 3's formula recovers from the running buffers.

    Raises:
        DefenseError: when the loss or a gradient is NaN or infinite.
    """

    def finite_loss(outputs: Any, labels: Tensor) -> Tensor:
        loss = loss_fn(outputs, labels)
        if not torch.isfinite(loss).all():
            raise DefenseError(
                f"the loss of the clean batch is {loss.item()}: correct the loss or lower the learning rate"
            )
        return loss

    parameters, buffers = split_state(model, model, like=images)
    # A dropout layer draws from the global random state: the real step must find it untouched.
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices=devices), BatchStatisticsRecorder(model) as recorder:
        gradients = loss_gradients(model, parameters, buffers, images, labels, finite_loss)
        statistics = recorder.take()
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise DefenseError(f"the clean batch's gradient of '{name}' holds NaN or infinity: correct the loss")
    return VictimSignals(
        {name: gradient.detach() for name, gradient in gradients.items()},
        {name: BatchStatistics(s.mean.detach(), s.variance.detach(), s.size) for name, s in statistics.items()},
    )
