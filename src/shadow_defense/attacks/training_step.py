"""One step of the client's optimiser in three ways: on the graph, off it, and computed anew in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from shadow_defense.attacks.optimiser_rules import OPTIMISER_RULES, Moments
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction, loss_gradients, nested_gradients
from shadow_defense.models.simulated_gradient import SimulatedGradient


class TrainingState(NamedTuple):
    """Parameters after so many steps, the optimiser's moments of each, and the batch-norm statistics of the last step.

    Before the first step there are no moments.
    """

    parameters: Mapping[str, Tensor]
    moments: Mapping[str, Moments]
    statistics: Mapping[str, BatchStatistics]
    taken: int = 0


@dataclass(frozen=True)
class TrainingStep:
    """``theta' = theta + step(g(theta, batch), theta, moments)``: from one state to the next, as the optimiser has it.

    Of SGD ``theta' = theta - eta v'``, ``v' = mu v + g(theta, batch) + lambda theta``.

    Attributes:
        buffers: train mode writes to them, once a step.
        mapped: inside ``torch.func.vmap``.
        gradient: at the parameters that the training begins with, in place of autograd's own; of one step alone.
    """

    model: nn.Module
    buffers: Mapping[str, Tensor]
    loss_fn: LossFunction
    local: LocalTraining
    recorder: BatchStatisticsRecorder
    mapped: bool = False
    gradient: SimulatedGradient | None = None

    def on_graph(
        self, state: TrainingState, images: Tensor, labels: Tensor, *, create_graph: bool = True
    ) -> TrainingState:
        """The next state, differentiable in the last one, the images and the labels.

        Unless mapped, the parameters have to require gradients.
        """
        steps, moments, statistics = self._steps(state, images, labels, create_graph)
        parameters = {name: tensor + steps[name] for name, tensor in state.parameters.items()}
        return TrainingState(parameters, moments, statistics, state.taken + 1)

    def first_update(
        self, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, BatchStatistics]]:
        """All that one step alone sends, of SGD ``-eta (g(theta, batch) + lambda theta)``, and batch-norm statistics.

        Without the parameters after it, which nobody reads. The loss is not scaled in their place: what a layer adds to
        its gradient (PRECODE) does not scale with it.
        """
        steps, _, statistics = self._steps(TrainingState(parameters, {}, {}), images, labels, create_graph=True)
        return steps, statistics

    def _steps(
        self, state: TrainingState, images: Tensor, labels: Tensor, create_graph: bool
    ) -> tuple[dict[str, Tensor], dict[str, Moments], dict[str, BatchStatistics]]:
        """What the step adds to each parameter, the moments after it, and the batch-norm statistics."""
        batch = (self.model, state.parameters, self.buffers, images, labels, self.loss_fn)
        if self.mapped:
            gradients, statistics = nested_gradients(*batch, self.recorder)
        elif self.gradient:
            gradients, statistics = self.gradient(images, labels)
        else:
            gradients, statistics = loss_gradients(*batch, create_graph=create_graph), self.recorder.take()
        rule = OPTIMISER_RULES[self.local.optimiser or "sgd"]
        steps, moments = dict[str, Tensor](), dict[str, Moments]()
        for name, gradient in gradients.items():
            steps[name], moments[name] = rule(
                self.local, state.taken, gradient, state.parameters[name], state.moments.get(name, ())
            )
        return steps, moments, statistics

    def off_graph(self, state: TrainingState, images: Tensor, labels: Tensor) -> TrainingState:
        """The next state as constants, among them parameters that a graph can begin with."""
        with torch.enable_grad():
            constant = TrainingState(self._leaves(state.parameters), _still(state.moments), {}, state.taken)
            found = self.on_graph(constant, images.detach(), labels.detach(), create_graph=False)
            return TrainingState(
                self._leaves(found.parameters),
                _still(found.moments),
                {
                    name: BatchStatistics(mean.detach(), variance.detach(), size)
                    for name, (mean, variance, size) in found.statistics.items()
                },
                found.taken,
            )

    def recomputed(self, state: TrainingState, images: Tensor, labels: Tensor) -> TrainingState:
        """What :meth:`on_graph` gives, without its graph: the backward pass runs the step again to have one.

        Such a state can be differentiated once.
        """
        # What the graph begins with is constant: no gradient is wanted there.
        parameters = [tensor.detach() if tensor.is_leaf else tensor for tensor in state.parameters.values()]
        form = _Form(tuple(state.parameters), state.taken + 1, dict[str, int]())
        before = [*parameters, *(tensor for each in state.moments.values() for tensor in each)]
        return form.folded(_RecomputedStep.apply(self, form, images, labels, *before))

    def _leaves(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # vmap knows no leaves, and torch.func.grad needs none.
        return _constants(tensors) if self.mapped else {n: t.detach().requires_grad_() for n, t in tensors.items()}


@dataclass
class _Form:
    """What a list of tensors that stands for a state has lost: names, steps taken, and each layer's batch size.

    ``sizes``, by layer, and ``kept``, moments of a parameter, are known once the step has been taken.
    """

    names: tuple[str, ...]
    taken: int
    sizes: dict[str, int]
    kept: int = 0

    def flattened(self, state: TrainingState) -> list[Tensor]:
        self.kept = len(state.moments[self.names[0]])
        self.sizes.update({name: statistics.size for name, statistics in state.statistics.items()})
        moments = [tensor for name in self.names for tensor in state.moments[name]]
        statistics = [tensor for each in state.statistics.values() for tensor in (each.mean, each.variance)]
        return [*state.parameters.values(), *moments, *statistics]

    def folded(self, tensors: Iterable[Tensor]) -> TrainingState:
        left = iter(tensors)
        parameters = dict(zip(self.names, left, strict=False))
        moments = {name: tuple(next(left) for _ in range(self.kept)) for name in self.names}
        statistics = {name: BatchStatistics(next(left), next(left), size) for name, size in self.sizes.items()}
        return TrainingState(parameters, moments, statistics, self.taken)


class _RecomputedStep(torch.autograd.Function):
    """``lambda_t = (d state_{t+1} / d state_t)^T lambda_{t+1}`` by a graph that lives no longer than this product."""

    @staticmethod
    def forward(ctx: Any, step: TrainingStep, form: _Form, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors: images, labels, parameters, moments if any. ``form`` is completed here."""
        images, labels, *state = tensors
        kept = len(state) // len(form.names) - 1
        ctx.step, ctx.before, ctx.after = step, _Form(form.names, form.taken - 1, {}, kept), form
        ctx.save_for_backward(*tensors)
        # Statistics that no loss reads must not cost a backward pass.
        ctx.set_materialize_grads(False)
        # Dropout has to draw the same masks again.
        ctx.random_state, ctx.device_states = torch.get_rng_state(), get_device_states(*tensors)
        found = step.off_graph(ctx.before.folded(state), images, labels)
        return tuple(tensor.detach() for tensor in form.flattened(found))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # A forward pass in train mode moves the buffers: they were moved when the step was first taken.
        buffers = {name: tensor.clone() for name, tensor in ctx.step.buffers.items()}
        step: TrainingStep = replace(ctx.step, buffers=buffers)
        needed = ctx.needs_input_grad[2:]
        devices, device_states = ctx.device_states
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            set_device_states(devices, device_states)
            tensors = [
                tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            images, labels, *state = tensors
            for parameter in state[: len(ctx.before.names)]:
                parameter.requires_grad_()
            outputs = ctx.after.flattened(step.on_graph(ctx.before.folded(state), images, labels))
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
        return None, None, *(next(found) if need else None for need in needed)


def _constants(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _still(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    return {name: tuple(tensor.detach() for tensor in each) for name, each in moments.items()}
