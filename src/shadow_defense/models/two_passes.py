"""A pass at a model's parameters as a node of autograd's graph whose derivative is found by another pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shadow_defense.models.batchnorm import BatchStatistics


@dataclass(frozen=True)
class FirstPass:
    """What a pass at theta leaves.

    Attributes:
        images: the leaf that the graph of ``statistics`` begins with.
        gradients: by the parameters.
        slope: the loss's gradient by the images.
        sides: of the kinks.
        random, devices: states of the random generators before the pass.
    """

    images: Tensor
    labels: Tensor
    gradients: Sequence[Tensor]
    slope: Tensor
    sides: Sequence[Tensor]
    statistics: Mapping[str, BatchStatistics]
    random: Tensor
    devices: tuple[list[int], list[Tensor]]

    def flat_statistics(self) -> list[Tensor]:
        return [tensor for each in self.statistics.values() for tensor in (each.mean, each.variance)]


Derivation = Callable[[Sequence[Tensor | None]], Tensor]
"""From ``v``, by what was found of a pass, to ``d <v, found> / dx``; None stands for zeros."""


def on_the_graph(
    images: Tensor, first: FirstPass, found: Sequence[Tensor], derivation: Derivation
) -> tuple[list[Tensor], dict[str, BatchStatistics]]:
    """``found`` and the statistics of the pass ``first`` at ``images``, on the graph of these, for one derivative."""
    on_graph: tuple[Tensor, ...] = _ByTwoPasses.apply(images, first, found, derivation)
    flat = iter(on_graph[len(found) :])
    statistics = {name: BatchStatistics(next(flat), next(flat), each.size) for name, each in first.statistics.items()}
    return list(on_graph[: len(found)]), statistics


def derivative_along(images: Tensor, pairs: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    """``d sum <v, t> / dx`` over pairs (t, v), of which those without v, or without a graph, count nothing."""
    reached = [(tensor, v) for tensor, v in pairs if v is not None and tensor.requires_grad]
    if not reached:
        return torch.zeros_like(images)
    tensors, directions = zip(*reached, strict=True)
    return torch.autograd.grad(tensors, images, directions, allow_unused=True, materialize_grads=True)[0]


class _ByTwoPasses(torch.autograd.Function):
    """From images to what was found of their first pass, then mean and variance of each batch-norm layer."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, first: FirstPass, found: Sequence[Tensor], derivation: Derivation
    ) -> tuple[Tensor, ...]:
        ctx.first, ctx.derivation, ctx.count = first, derivation, len(found)
        # Of what no loss reads no derivative is taken.
        ctx.set_materialize_grads(False)
        # What is kept for the backward pass must not be what is returned, which has this pass as its origin: a circle
        # of the two is never freed.
        return tuple(tensor.detach() for tensor in (*found, *first.flat_statistics()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor, None, None, None]:
        first: FirstPass = ctx.first
        along, others = given[: ctx.count], given[ctx.count :]
        with torch.enable_grad():
            slope = derivative_along(first.images, zip(first.flat_statistics(), others, strict=True))
            if any(v is not None for v in along):
                slope = slope + ctx.derivation(along)
        return slope, None, None, None
