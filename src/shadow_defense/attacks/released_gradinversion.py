"""The medical attack as its authors released it (docs/attacks.md): to reproduce published numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.observed_statistics import NOTHING_IN_THE_BUFFERS
from shadow_defense.attacks.priors import mean_norm
from shadow_defense.attacks.search import cosine_schedule
from shadow_defense.attacks.target import PARAMETERS_WITHHELD, matching_target
from shadow_defense.models.batchnorm import (
    BatchStatistics,
    BatchStatisticsRecorder,
    batch_norm_layers,
    layer_momentum,
    recover_statistics,
)
from shadow_defense.models.functional import functional_call
from shadow_defense.models.image_priors import frobenius_variation, statistics_distance
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator

RELEASED = (
    "mode released: the matching term has no gradient, the global model is trained on the reconstruction, and the last "
    "iterate is returned, each image stretched to [0, 1]"
)


class TrainedOn(NamedTuple):
    """The parameters after one step on the candidates, and what its backward pass left on images and labels."""

    parameters: dict[str, Tensor]
    on_images: Float[Tensor, "n c h w"]
    on_labels: Float[Tensor, "n k"]


def train_on(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Float[Tensor, "n k"],
    learning_rate: float,
) -> TrainedOn:
    """One SGD step of ``BCE(f(x), sigmoid(t))``: the parameters come back without a graph, as from a state dict.

    The client minimises cross entropy; binary cross entropy with soft labels is what the released attack simulates.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    outputs = functional_call(model, {**leaves, **buffers}, (images,))
    loss = F.binary_cross_entropy_with_logits(outputs, labels.sigmoid())
    *steps, on_images, on_labels = torch.autograd.grad(
        loss, [*leaves.values(), images, labels], allow_unused=True, materialize_grads=True
    )
    trained = {
        name: leaf.detach() - learning_rate * step for (name, leaf), step in zip(leaves.items(), steps, strict=True)
    }
    return TrainedOn(trained, on_images, on_labels)


def released_matching(
    trained: Mapping[str, Tensor], before: Mapping[str, Tensor], sent: Sequence[str], observed: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """``sum over tensors of ||(theta_trained - theta_0) - U*||_2``: of detached tensors, hence without a gradient."""
    distances = [
        torch.linalg.vector_norm(trained[name] - before[name].detach() - update)
        for name, update in zip(sent, observed, strict=True)
    ]
    return torch.stack(distances).sum()


def one_pass_statistics(observation: Observation) -> dict[str, BatchStatistics]:
    """The statistics that would explain the buffers after one forward pass; {} where there are none to be had.

    However many passes there were, and with the unbiased variance in the biased one's place, as released.
    """
    update, before = observation.update, observation.global_state
    statistics = {}
    for name, layer in batch_norm_layers(observation.model).items():
        buffers = [f"{name}.{buffer}" for buffer in ("running_mean", "running_var")]
        if observation.local_training.batch_norm != "train" or not set(buffers).isdisjoint(update.withheld):
            return {}
        momentum = layer_momentum(name, layer)
        mean, variance = (
            recover_statistics(before[each], before[each] + update.tensors[each], momentum, 1) for each in buffers
        )
        statistics[name] = BatchStatistics(mean, variance, 0)
    return statistics


def released_attack(
    observation: Observation,
    *,
    iterations: int,
    learning_rate: float,
    matching_weight: float,
    batch_norm: float,
    total_variation: float,
    norm: float,
    energy_noise: float,
    seed: int,
    task: Task | None,
) -> Reconstruction:
    """Adam on images and labels together, by the gradient that the released code leaves on them.

    That is the gradient of the task loss, left over from the simulated local step, plus that of ``b sum_BN (||mu -
    mu*||_2 + ||var - var*||_2) + c TV(x) + d mean ||x||_2``. The statistics are those of the client's model after the
    round, the network of the task loss goes on training from iteration to iteration, and one batch is sought.
    """
    started = time.perf_counter()
    # No local step is unrolled: one batch, whatever the client did.
    target = matching_target(observation, longest_unroll=0)
    count = len(target.labels)
    draws = named_generator(seed, "gradinversion")
    x = observation.normalisation.apply(observation.template.unsqueeze(0)).repeat(count, 1, 1, 1).requires_grad_()
    if observation.grants("labels"):
        labels = F.one_hot(target.labels, observation.classes).to(x)
    else:
        labels = torch.randn(count, observation.classes, generator=draws).to(x)
    labels.requires_grad_()
    statistics = one_pass_statistics(observation)
    after = {name: tensor.detach().clone() for name, tensor in target.parameters.items()}
    for name, update in zip(target.sent, target.observed, strict=True):
        after[name] += update
    optimiser = torch.optim.Adam([x, labels], lr=learning_rate, betas=(0.9, 0.9))
    schedule = partial(cosine_schedule, warm_up=min(0.05, 100 / iterations))
    every = -(-iterations // 100)
    trained: Mapping[str, Tensor] = target.parameters
    history: list[Tensor] = []
    matched = torch.zeros((), device=x.device)
    with BatchStatisticsRecorder(observation.model) as recorder:
        for iteration in range(iterations):
            step = train_on(
                observation.model, trained, target.buffers, x, labels, observation.local_training.learning_rate
            )
            trained = step.parameters
            matched = released_matching(trained, target.parameters, target.sent, target.observed)
            total = total_variation * frobenius_variation(x) + norm * mean_norm(x) + matching_weight * matched
            if statistics:
                recorder.take()
                functional_call(observation.model, {**after, **target.buffers}, (x,))
                total = total + batch_norm * statistics_distance(recorder.take(), statistics, x)
            (gradient,) = torch.autograd.grad(total, x)
            x.grad, labels.grad = step.on_images + gradient, step.on_labels
            rate = learning_rate * schedule(iteration / iterations)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            with torch.no_grad():
                x += energy_noise * rate * torch.randn(x.shape, generator=draws).to(x)
            if iteration % every == 0:
                history.append(total.detach())
            if task:
                task.advance()
    notes = [note for note in target.notes if note == PARAMETERS_WITHHELD]
    if target.local.optimiser != "sgd":
        notes.append(f"the client's {target.local.optimiser} taken for SGD, as the released code does")
    notes += [RELEASED, f"{count} of {observation.update.samples} images sought"]
    return Reconstruction(
        stretched(x.detach()),
        labels.detach().argmax(1),
        float(matched),
        iterations,
        time.perf_counter() - started,
        tuple(float(value) for value in history),
        tuple(notes if statistics else [*notes, NOTHING_IN_THE_BUFFERS]),
    )


def stretched(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each image scaled and shifted so that its least value is 0 and its greatest 1.

    >>> stretched(torch.tensor([2.0, 3.0, 6.0]).view(1, 1, 1, 3)).flatten().tolist()
    [0.0, 0.25, 1.0]
    """
    low, high = images.flatten(1).min(1).values, images.flatten(1).max(1).values
    return (images - low.view(-1, 1, 1, 1)) / (high - low).clamp_min(1e-12).view(-1, 1, 1, 1)
