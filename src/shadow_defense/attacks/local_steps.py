"""The client's local training as a differentiable function of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.attacks.observation import LocalTraining
from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction, loss_gradients, nested_gradients


@dataclass(frozen=True)
class SimulatedTraining:
    """The simulated update of the parameters asked for, in their order, and each step's batch-norm statistics.

    All on the graph.
    """

    update: list[Tensor]
    statistics: list[dict[str, BatchStatistics]]


def simulate_training(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, "n"] | Float[Tensor, "n k"],
    loss_fn: LossFunction,
    local: LocalTraining,
    recorder: BatchStatisticsRecorder,
    sent: Sequence[str] | None = None,
    *,
    mapped: bool = False,
) -> SimulatedTraining:
    """``theta_{t+1} = theta_t - eta v_t``, ``v_t = mu v_{t-1} + g(theta_t, batch_t) + lambda theta_t``, unrolled.

    Batches are consecutive slices of ``images``, again and again until ``local.steps`` are done. Everything stays on
    the graph: the update is differentiable with respect to ``images`` (the released code of the medical attack reads
    it from the state dict after ``optimizer.step()``, where it has no gradient; spec/attacks.md, 5c).

    Args:
        parameters: leaves that require gradients; left alone.
        labels: classes, or a probability for each class where the attack seeks the labels too.
        buffers: clones: train mode writes to them.
        recorder: open, so that hooks are not registered anew in every call.
        sent: names of the parameters whose update is returned, in this order; None: all of them. The client trains the
            others as well, and they move what is sent.
        mapped: inside ``torch.func.vmap``, over several candidates for ``images``, each with buffers of its own.
    """
    current, velocity = dict(parameters), dict[str, Tensor]()
    statistics = []
    slices = list(zip(images.split(local.batch_size), labels.split(local.batch_size), strict=True))
    for step in range(local.steps):
        batch_images, batch_labels = slices[step % len(slices)]
        batch = (model, current, buffers, batch_images, batch_labels, loss_fn)
        if mapped:
            gradients, seen = nested_gradients(*batch, recorder)
        else:
            gradients, seen = loss_gradients(*batch, create_graph=True), recorder.take()
        statistics.append(seen)
        for name, gradient in gradients.items():
            if local.weight_decay:
                gradient = gradient + local.weight_decay * current[name]
            if local.momentum and step:
                gradient = local.momentum * velocity[name] + gradient
            velocity[name] = gradient
        if local.steps > 1:
            current = {name: tensor - local.learning_rate * velocity[name] for name, tensor in current.items()}
    returned = parameters if sent is None else sent
    if local.steps == 1:
        # The difference of two nearly equal tensors would lose digits.
        return SimulatedTraining([-local.learning_rate * velocity[name] for name in returned], statistics)
    return SimulatedTraining([current[name] - parameters[name] for name in returned], statistics)


def as_single_step(local: LocalTraining) -> LocalTraining:
    """All steps as one average step of the same total length: what is feasible after hundreds of local steps."""
    return LocalTraining(
        local.learning_rate * local.steps, local.batch_size, 1, local.batch_norm, weight_decay=local.weight_decay
    )
