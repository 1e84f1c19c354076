"""One step of the client's SGD in three ways: on the graph, off it, and computed anew in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from shadow_defense.attacks.observation import LocalTraining
from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction, loss_gradients, nested_gradients


class TrainingState(NamedTuple):
    """Parameters and their velocities after a step, and the batch-norm statistics of that step.

    Before the first step there are no velocities.
    """

    parameters: Mapping[str, Tensor]
    velocity: Mapping[str, Tensor]
    statistics: Mapping[str, BatchStatistics]


@dataclass(frozen=True)
class TrainingStep:
    """``theta' = theta - eta v'``, ``v' = mu v + g(theta, batch) + lambda theta``: from one state to the next.

    Attributes:
        buffers: train mode writes to them, once a step.
        mapped: inside ``torch.func.vmap``.
    """

    model: nn.Module
    buffers: Mapping[str, Tensor]
    loss_fn: LossFunction
    local: LocalTraining
    recorder: BatchStatisticsRecorder
    mapped: bool = False

    def on_graph(
        self, state: TrainingState, images: Tensor, labels: Tensor, *, create_graph: bool = True
    ) -> TrainingState:
        """The next state, differentiable in the last one, the images and the labels.

        Unless mapped, the parameters have to require gradients.
        """
        velocity, statistics = self._decayed_gradients(state.parameters, images, labels, create_graph)
        if self.local.momentum and state.velocity:
            velocity = {name: self.local.momentum * state.velocity[name] + moving for name, moving in velocity.items()}
        rate = self.local.learning_rate
        parameters = {name: tensor - rate * velocity[name] for name, tensor in state.parameters.items()}
        return TrainingState(parameters, velocity, statistics)

    def first_update(
        self, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, BatchStatistics]]:
        """``-eta (g(theta, batch) + lambda theta)``, all that one step alone sends, and its batch-norm statistics.

        Without the parameters after it, which nobody reads. The loss is not scaled in their place: what a layer adds to
        its gradient (PRECODE) does not scale with it.
        """
        gradients, statistics = self._decayed_gradients(parameters, images, labels, create_graph=True)
        return {name: -self.local.learning_rate * tensor for name, tensor in gradients.items()}, statistics

    def _decayed_gradients(
        self, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor, create_graph: bool
    ) -> tuple[dict[str, Tensor], dict[str, BatchStatistics]]:
        """``g(theta, batch) + lambda theta`` by name, and the batch-norm statistics."""
        batch = (self.model, parameters, self.buffers, images, labels, self.loss_fn)
        if self.mapped:
            gradients, statistics = nested_gradients(*batch, self.recorder)
        else:
            gradients, statistics = loss_gradients(*batch, create_graph=create_graph), self.recorder.take()
        if self.local.weight_decay:
            decay = self.local.weight_decay
            gradients = {name: tensor + decay * parameters[name] for name, tensor in gradients.items()}
        return gradients, statistics

    def off_graph(self, state: TrainingState, images: Tensor, labels: Tensor) -> TrainingState:
        """The next state as constants, among them parameters that a graph can begin with."""
        with torch.enable_grad():
            constant = TrainingState(self._leaves(state.parameters), _constants(state.velocity), {})
            found = self.on_graph(constant, images.detach(), labels.detach(), create_graph=False)
            return TrainingState(
                self._leaves(found.parameters),
                _constants(found.velocity),
                {
                    name: BatchStatistics(mean.detach(), variance.detach(), size)
                    for name, (mean, variance, size) in found.statistics.items()
                },
            )

    def recomputed(self, state: TrainingState, images: Tensor, labels: Tensor) -> TrainingState:
        """What :meth:`on_graph` gives, without its graph: the backward pass runs the step again to have one.

        Such a state can be differentiated once.
        """
        # What the graph begins with is constant: no gradient is wanted there.
        parameters = [tensor.detach() if tensor.is_leaf else tensor for tensor in state.parameters.values()]
        names, sizes = tuple(state.parameters), dict[str, int]()
        flat = _RecomputedStep.apply(self, names, sizes, images, labels, *parameters, *state.velocity.values())
        return _folded(names, flat, bool(self.local.momentum), sizes)

    def _leaves(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # vmap knows no leaves, and torch.func.grad needs none.
        return _constants(tensors) if self.mapped else {n: t.detach().requires_grad_() for n, t in tensors.items()}


class _RecomputedStep(torch.autograd.Function):
    """``lambda_t = (d state_{t+1} / d state_t)^T lambda_{t+1}`` by a graph that lives no longer than this product."""

    @staticmethod
    def forward(
        ctx: Any, step: TrainingStep, names: tuple[str, ...], sizes: dict[str, int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Tensors: images, labels, parameters, velocities if any. ``sizes``, by layer, is filled here."""
        ctx.step, ctx.names = step, names
        ctx.save_for_backward(*tensors)
        # Statistics that no loss reads must not cost a backward pass.
        ctx.set_materialize_grads(False)
        # Dropout has to draw the same masks again.
        ctx.random_state, ctx.device_states = torch.get_rng_state(), get_device_states(*tensors)
        images, labels, *state = tensors
        found = step.off_graph(_folded(names, state, len(state) > len(names), {}), images, labels)
        sizes.update({name: statistics.size for name, statistics in found.statistics.items()})
        return tuple(tensor.detach() for tensor in _flattened(found, bool(step.local.momentum)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # A forward pass in train mode moves the buffers: they were moved when the step was first taken.
        buffers = {name: tensor.clone() for name, tensor in ctx.step.buffers.items()}
        step: TrainingStep = replace(ctx.step, buffers=buffers)
        needed = ctx.needs_input_grad[3:]
        devices, device_states = ctx.device_states
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            set_device_states(devices, device_states)
            tensors = [
                tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            images, labels, *state = tensors
            for parameter in state[: len(ctx.names)]:
                parameter.requires_grad_()
            folded = _folded(ctx.names, state, len(state) > len(ctx.names), {})
            outputs = _flattened(step.on_graph(folded, images, labels), bool(step.local.momentum))
        pairs = zip(outputs, gradients, strict=True)
        reached = [(output, gradient) for output, gradient in pairs if gradient is not None and output.requires_grad]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in reached],
                [tensor for tensor, need in zip(tensors, needed, strict=True) if need],
                [gradient for _, gradient in reached],
                allow_unused=True,
            )
        )
        return None, None, None, *(next(found) if need else None for need in needed)


def _constants(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _flattened(state: TrainingState, with_velocity: bool) -> list[Tensor]:
    velocity = list(state.velocity.values()) if with_velocity else []
    statistics = [tensor for each in state.statistics.values() for tensor in (each.mean, each.variance)]
    return [*state.parameters.values(), *velocity, *statistics]


def _folded(
    names: tuple[str, ...], tensors: Iterable[Tensor], with_velocity: bool, sizes: Mapping[str, int]
) -> TrainingState:
    """Undo :func:`_flattened`; ``sizes`` names the layers."""
    left = iter(tensors)
    parameters = dict(zip(names, left, strict=False))
    velocity = dict(zip(names, left, strict=False)) if with_velocity else {}
    return TrainingState(
        parameters, velocity, {name: BatchStatistics(next(left), next(left), size) for name, size in sizes.items()}
    )
