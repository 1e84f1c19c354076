"""A network from updates to images, and how it is trained (Learning to Invert; docs/attacks.md)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator, seed_for


@dataclass(frozen=True)
class Examples:
    """What is learned from: a row of features for each client, and its flattened images in [0, 1]."""

    features: Float[Tensor, "m f"]
    images: Float[Tensor, "m n p"]


@dataclass(frozen=True)
class Learned:
    """The network as it was after ``epoch`` (from 1), and its loss on held-out examples after every epoch."""

    network: nn.Module
    epoch: int
    held_out: tuple[float, ...]


def matched_error(
    predicted: Float[Tensor, "m n p"], images: Float[Tensor, "m n p"], labels: Int64[Tensor, " n"]
) -> Float[Tensor, ""]:
    """``min over orders s of mean_i ||x_i - y_s(i)||_2^2 / p``, averaged over the m clients.

    The order in which a client's images are returned means nothing, so that the one of least error counts (Hungarian
    algorithm). Departure: only orders that leave every label in its place, since labels are known or recovered.

    >>> swapped = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]])
    >>> [matched_error(*swapped, torch.tensor(labels)).item() for labels in ([0, 0], [0, 1])]
    [0.0, 1.0]
    """
    if len(labels.unique()) == len(labels):
        return (predicted - images).square().mean()
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        cost = torch.cdist(predicted, images).square()
        cost = cost.masked_fill(labels.unsqueeze(1) != labels, math.inf)
        assigned = [linear_sum_assignment(each)[1].tolist() for each in cost.cpu().numpy()]
        orders = torch.tensor(assigned, device=images.device)
    ordered = images.gather(1, orders.unsqueeze(2).expand_as(images))
    return (predicted - ordered).square().mean()


def inversion_network(features: int, hidden: int, mean: Float[Tensor, "n p"], seed: int) -> nn.Module:
    """``features -> hidden -> hidden -> n p``, ReLU between and a sigmoid at the end, which starts at ``mean``.

    Published without the start: a network that has few steps need not learn the mean image first.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also seed the accelerators, whose state is the caller's.
        torch.default_generator.manual_seed(seed_for(seed, "inversion network"))
        last = nn.Linear(hidden, mean.numel())
        layers = (nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.copy_(mean.flatten().clamp(0.01, 0.99).logit())
    return nn.Sequential(*layers, nn.Sigmoid(), nn.Unflatten(1, tuple(mean.shape)))


def learn(
    training: Examples,
    held_out: Examples,
    labels: Int64[Tensor, " n"],
    *,
    hidden: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    task: Task | None = None,
) -> Learned:
    """Train by Adam, a tenth of the learning rate in the last quarter, and keep the best epoch on ``held_out``.

    Departure: the published code chooses the epoch on the images that it is scored on.
    """
    network = inversion_network(training.features.shape[1], hidden, training.images.mean(0).cpu(), seed)
    network.to(training.features.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    draws = named_generator(seed, "inversion network", "order")
    losses: list[float] = []
    best, state = 0, copy.deepcopy(network.state_dict())
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (0.1 if epoch >= 0.75 * epochs else 1.0)
        for batch in torch.randperm(len(training.features), generator=draws).split(batch_size):
            loss = matched_error(network(training.features[batch]), training.images[batch], labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            losses.append(matched_error(network(held_out.features), held_out.images, labels).item())
        if losses[epoch] <= min(losses):
            best, state = epoch, copy.deepcopy(network.state_dict())
        if task is not None:
            task.advance(note=f"held-out error {losses[epoch]:.4g}")
    network.load_state_dict(state)
    return Learned(network, best + 1, tuple(losses))
