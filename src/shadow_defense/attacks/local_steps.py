"""The client's local training as a differentiable function of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.attacks.training_step import TrainingState, TrainingStep
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction
from shadow_defense.models.simulated_gradient import SimulatedGradient

RECOMPUTED_ABOVE = 4
"""More steps on the graph than this are computed anew in the backward pass, which then holds the graph of one."""


@dataclass(frozen=True)
class SimulatedTraining:
    """The simulated update of the parameters asked for, in their order, and each step's batch-norm statistics.

    All on the graph, but for the statistics of steps that were truncated.
    """

    update: list[Tensor]
    statistics: list[dict[str, BatchStatistics]]


def simulate_training(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | Float[Tensor, "n k"],
    loss_fn: LossFunction,
    local: LocalTraining,
    recorder: BatchStatisticsRecorder,
    sent: Sequence[str] | None = None,
    *,
    mapped: bool = False,
    last: int | None = None,
    gradient: SimulatedGradient | None = None,
) -> SimulatedTraining:
    """``theta_{t+1} = theta_t - eta v_t``, ``v_t = mu v_{t-1} + g(theta_t, batch_t) + lambda theta_t``, unrolled.

    That is SGD; the other optimisers are in :mod:`shadow_defense.attacks.optimiser_rules`.

    Batches are consecutive slices of ``images``, again and again until ``local.steps`` are done. The update is
    differentiable with respect to ``images`` (the released code of the medical attack reads it from the state dict
    after ``optimizer.step()``, where it has no gradient). Of more than ``RECOMPUTED_ABOVE``
    steps only the parameters are kept: the backward pass computes every step anew, to the same gradient, in memory
    that grows by one model a step in place of one graph. Such an update can be differentiated once.

    Args:
        parameters: leaves that require gradients; left alone.
        labels: classes, or a probability for each class where the attack seeks the labels too.
        buffers: clones: train mode writes to them, once a step.
        recorder: open, so that hooks are not registered anew in every call, until the gradients are taken.
        sent: names of the parameters whose update is returned, in this order; None: all of them. The client trains the
            others as well, and they move what is sent.
        mapped: inside ``torch.func.vmap``, over several candidates for ``images``, each with buffers of its own;
            nothing is computed anew there.
        gradient: at ``parameters``, kept from call to call, by which a single step is differentiated faster. Several
            steps go by autograd alone: all but the first begin at parameters that depend on the images.
        last: gradients go through so many steps at the end; those before move the parameters as constants. Cheaper,
            and biased. An image that only earlier steps see gets none: take an epoch's steps or more. None: all.
    """
    returned = parameters if sent is None else sent
    if local.steps == 1:
        step = TrainingStep(model, buffers, loss_fn, local, recorder, mapped, None if mapped else gradient)
        # Not as the difference of two nearly equal tensors, which would lose digits.
        update, seen = step.first_update(parameters, images[: local.batch_size], labels[: local.batch_size])
        return SimulatedTraining([update[name] for name in returned], [seen])
    step = TrainingStep(model, buffers, loss_fn, local, recorder, mapped)
    kept = local.steps if last is None else min(last, local.steps)
    state = TrainingState(parameters, {}, {})
    statistics = list[dict[str, BatchStatistics]]()
    slices = list(zip(images.split(local.batch_size), labels.split(local.batch_size), strict=True))
    for index in range(local.steps):
        batch = slices[index % len(slices)]
        if index < local.steps - kept:
            state = step.off_graph(state, *batch)
        elif kept > RECOMPUTED_ABOVE and not mapped:
            state = step.recomputed(state, *batch)
        else:
            state = step.on_graph(state, *batch)
        statistics.append(dict(state.statistics))
    return SimulatedTraining([state.parameters[name] - parameters[name] for name in returned], statistics)


def as_single_step(local: LocalTraining) -> LocalTraining:
    """All steps as one average step of the same total length: what is feasible after hundreds of local steps."""
    return replace(local, learning_rate=local.learning_rate * local.steps, steps=1, momentum=0.0)
