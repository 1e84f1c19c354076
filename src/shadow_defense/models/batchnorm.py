"""Batch-norm statistics: what a forward pass saw, and what two sets of running buffers give away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shadow_defense.errors import ModelError


class BatchStatistics(NamedTuple):
    """Mean and variance of one batch-norm layer's input, over batch and space, per channel.

    ``size`` is the number of values behind each entry (n * h * w).
    """

    mean: Float[Tensor, " c"]
    variance: Float[Tensor, " c"]
    size: int


def batch_norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers that keep running statistics, by module name, in definition order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def batch_norm_names(model: nn.Module, of: Literal["parameters", "buffers"]) -> frozenset[str]:
    """The state-dict names of all batch-norm layers' scales and shifts, or of their statistics and counters.

    >>> sorted(batch_norm_names(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "parameters"))
    ['1.bias', '1.weight']
    """
    names = set[str]()
    # A layer that is used in two places is in the state dict under both names.
    for place, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm):
            own = module.named_parameters(place, False) if of == "parameters" else module.named_buffers(place, False)
            names.update(name for name, _ in own)
    return frozenset(names)


class BatchStatisticsRecorder:
    """Records the input statistics of every batch-norm layer during the forward passes inside a ``with`` block.

    The variance is the biased one (divided by ``size``) and both stay on the graph. ``take()`` gives what was
    recorded since the last call and forgets it. Hooks are gone when the block ends.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = batch_norm_layers(model)
        self._recorded: dict[str, BatchStatistics] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> BatchStatisticsRecorder:
        for name, layer in self._layers.items():

            def record(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                (features,) = inputs
                over = [0, *range(2, features.dim())]
                variance, mean = torch.var_mean(features, dim=over, unbiased=False)
                self._recorded[name] = BatchStatistics(mean, variance, features.numel() // features.shape[1])

            self._handles.append(layer.register_forward_pre_hook(record))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> dict[str, BatchStatistics]:
        recorded, self._recorded = self._recorded, {}
        return recorded


def recover_statistics(
    before: Float[Tensor, " c"], after: Float[Tensor, " c"], momentum: float, steps: int
) -> Float[Tensor, " c"]:
    """The batch statistic that moved a running buffer from ``before`` to ``after`` in ``steps`` forward passes.

    ``s = (after - (1-m)^k before) / (1 - (1-m)^k)`` (step 3 of docs/method.md): exact for one step, for
    more the average of the k batches with weights proportional to ``(1-m)^(k-j)``.

    >>> recover_statistics(torch.tensor([0.0]), torch.tensor([0.5]), momentum=0.1, steps=1).item()
    5.0
    """
    kept = (1 - momentum) ** steps
    return (after - kept * before) / (1 - kept)


def step_weights(momentum: float, steps: int) -> tuple[float, ...]:
    """The weights with which the k batches enter :func:`recover_statistics`, first step first; they sum to 1."""
    raw = [(1 - momentum) ** (steps - 1 - step) for step in range(steps)]
    return tuple(weight / sum(raw) for weight in raw)


def layer_momentum(name: str, layer: _BatchNorm) -> float:
    """The layer's momentum. Raises :class:`ModelError` for a cumulative average, which forgets no batch."""
    if layer.momentum is None:
        raise ModelError(f"batch norm '{name}' keeps a cumulative average (momentum=None): give it a momentum")
    return layer.momentum


def recover_batch_statistics(
    model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], sizes: Mapping[str, int], steps: int
) -> dict[str, BatchStatistics]:
    """Every layer's batch mean and *biased* variance, from two state dicts.

    ``running_var`` averages the unbiased variance, so it is scaled by ``(n-1)/n`` with n from ``sizes``; noise on
    the buffers may make it negative, which is cut at zero.
    """
    recovered = {}
    for name, layer in batch_norm_layers(model).items():
        momentum = layer_momentum(name, layer)
        mean, variance = (
            recover_statistics(before[f"{name}.{buffer}"], after[f"{name}.{buffer}"], momentum, steps)
            for buffer in ("running_mean", "running_var")
        )
        size = sizes[name]
        recovered[name] = BatchStatistics(mean, (variance * (size - 1) / size).clamp_min(0), size)
    return recovered
