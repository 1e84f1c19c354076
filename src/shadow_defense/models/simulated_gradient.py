"""The gradient that images would give, differentiated by the images without a backward pass through a backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import get_device_states, set_device_states

from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction, Substitution, loss_gradients
from shadow_defense.models.kinks import RecordedKinks, ReplayedKinks
from shadow_defense.models.update_losses import LossSlope, UpdateLoss

STEP = 1e-5
"""``|e v|`` in units of ``|theta|``: in single precision truncation shows above it (at 1e-4 a ResNet-18 with batch norm
keeps a cosine of 0.996), rounding below it."""

AGREEMENT = 0.999
"""Cosine to the exact derivative from which on the difference stands for it."""

Derivative = Literal["unknown", "difference", "exact"]
"""How the update is differentiated; unknown: to be decided at the first derivative."""

DERIVATIVES: tuple[Derivative, ...] = get_args(Derivative)

NO_DIFFERENCE = "the update's derivative is taken exactly: the difference of two passes is too far from it"


def channels_last(tensor: Tensor) -> Tensor:
    """``tensor`` as a processor's convolutions read it fastest: with four dimensions channels last, else as it is.

    Of a leaf that requires a gradient the result is another such leaf.
    """
    if tensor.dim() != 4 or tensor.device.type != "cpu":
        return tensor
    laid = tensor.detach().contiguous(memory_format=torch.channels_last)
    return laid.requires_grad_(tensor.requires_grad)


class SimulatedGradient:
    """``g(x) = d loss(theta, x) / d theta``, which autograd can differentiate by the images x.

    Mixed derivatives commute: ``d <v, g(x)> / dx = d/de grad_x loss(theta + e v, x) at e = 0``, which
    ``(grad_x loss(theta + e v, x) - grad_x loss(theta, x)) / e`` gives by one more forward and backward pass without
    gradients of weights (Pearlmutter 1994, "Fast exact multiplication by the Hessian"). Autograd's own way costs 1.4
    to 2 times both together; forward over reverse mode, which needs no e, as much as autograd's. ReLU, leaky ReLU and
    max pooling take the same sides in both passes (:mod:`~shadow_defense.models.kinks`).

    The first derivative is taken both ways. Where they disagree all are exact, and ``notes`` says so; in double
    precision, which is for exactness, they are from the start.

    Args:
        parameters: theta, leaves that require gradients; they stay as they are from a call to its derivative;
            fastest :func:`channels_last`.
        buffers: written to in train mode, once a call.
        recorder: open, where batch-norm statistics are wanted.
        method: what an earlier object found out about the same model.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        loss_fn: LossFunction,
        recorder: BatchStatisticsRecorder,
        method: Derivative = "unknown",
    ) -> None:
        self._model, self._loss_fn, self._recorder = model, loss_fn, recorder
        self._parameters, self._buffers = parameters, buffers
        self._called = Substitution(model, [*parameters, *buffers])
        self._constants = [tensor.detach() for tensor in parameters.values()]
        # Written to by every second pass: of a large network new ones would take as long as a layer.
        self._moved = [torch.empty_like(tensor) for tensor in self._constants]
        self._length = get_total_norm(self._constants)
        double = any(tensor.dtype == torch.float64 for tensor in self._constants)
        self.method: Derivative = "exact" if double else method
        self.notes: tuple[str, ...] = ()
        self._smooth = False

    @property
    def exact(self) -> bool:
        """Whether no difference stands for a derivative, as it may turn out at the first one."""
        return self.method == "exact"

    def __call__(
        self, images: Float[Tensor, "n c h w"], labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, BatchStatistics]]:
        """The gradient by parameter's name, and the batch-norm statistics of the pass, both on the graph of ``images``.

        Where differences are taken the graph serves for one derivative.
        """
        if self.exact or not (torch.is_grad_enabled() and images.requires_grad):
            return self._exact(self._buffers, images, labels), self._recorder.take()
        sizes = dict[str, int]()
        found = iter(_ByTwoPasses.apply(self, sizes, images, labels))
        gradients = {name: next(found) for name in self._parameters}
        return gradients, {name: BatchStatistics(next(found), next(found), size) for name, size in sizes.items()}

    def loss(
        self, images: Float[Tensor, "n c h w"], labels: Tensor, loss: UpdateLoss
    ) -> tuple[Float[Tensor, ""], dict[str, BatchStatistics]]:
        """``loss`` of the gradient and the statistics, on the graph of ``images``, which serves for one derivative.

        What calling the object and ``loss`` in its turn gives, without tensors as large as the gradient between them.
        """
        sizes = dict[str, int]()
        value, *flat = _LossByTwoPasses.apply(self, loss, sizes, images, labels)
        found = iter(flat)
        return value, {name: BatchStatistics(next(found), next(found), size) for name, size in sizes.items()}

    def first_pass(self, images: Tensor, labels: Tensor) -> _FirstPass:
        """The pass at theta, with all that the second has to share with it."""
        random, devices = torch.get_rng_state(), get_device_states(images)
        images, kinks = images.detach().requires_grad_(), RecordedKinks()
        with nullcontext() if self._smooth else kinks:
            loss = self._loss(self._parameters.values(), self._buffers, images, labels)
        statistics = self._recorder.take()
        *gradients, slope = torch.autograd.grad(
            loss,
            [*self._parameters.values(), images],
            # What becomes of the statistics goes back through the same graph.
            retain_graph=bool(statistics),
            allow_unused=True,
            materialize_grads=True,
        )
        return _FirstPass(images, labels, gradients, slope, kinks.sides, statistics, random, devices)

    def derivative(self, first: _FirstPass, along: Sequence[Tensor | None]) -> Tensor:
        """``d <v, g> / dx`` for v = ``along``, a tensor for each parameter; None stands for zeros."""
        if self.exact:
            return self._exact_derivative(first, along)
        return self._checked(first, self._difference_along(first, along), along)

    def derivative_of_loss(self, first: _FirstPass, loss: UpdateLoss, slope: LossSlope) -> Tensor:
        """:meth:`derivative` along that of a loss, which is made of its numbers in the place of the second pass."""
        if self.method == "difference":
            return self._difference_of_loss(first, loss, slope)
        mixed = zip(loss.constants, first.gradients, slope.own, slope.scale, strict=True)
        along = [torch.addcmul(c, g, own) * scale for c, g, own, scale in mixed]
        if self.exact:
            return self._exact_derivative(first, along)
        return self._checked(first, self._difference_of_loss(first, loss, slope), along)

    def _checked(self, first: _FirstPass, found: Tensor, along: Sequence[Tensor | None]) -> Tensor:
        """What was found by a difference, or the exact derivative where the first of all comes not near it."""
        if self.method == "unknown":
            exact = self._exact_derivative(first, along)
            agreement = F.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
            # Never true of what is not a number.
            self.method = "difference" if bool(agreement >= AGREEMENT) else "exact"
            if self.exact:
                self.notes = (NO_DIFFERENCE,)
                return exact
            # What a network without kinks computes is not watched again: that takes as long as a layer.
            self._smooth = not first.sides
        return found

    def _difference_of_loss(self, first: _FirstPass, loss: UpdateLoss, slope: LossSlope) -> Tensor:
        step = self._step(slope.length)
        for still, c, g, own, scale, place in zip(
            self._constants, loss.constants, first.gradients, slope.own, step * slope.scale, self._moved, strict=True
        ):
            # Mixed before it moves a parameter: what moves it is so small that each sum rounds some of it off.
            torch.addcmul(still, torch.addcmul(c, g, own, out=place), scale, out=place)
        return self._difference(first, self._moved, step)

    def _difference_along(self, first: _FirstPass, along: Sequence[Tensor | None]) -> Tensor:
        step = self._step(get_total_norm([v for v in along if v is not None]))
        moved = [
            still if v is None else torch.addcmul(still, v, step, out=place)
            for still, v, place in zip(self._constants, along, self._moved, strict=True)
        ]
        return self._difference(first, moved, step)

    def _step(self, length: Tensor) -> Tensor:
        # Along zeros no parameter moves, whatever the step.
        return STEP * self._length / torch.where(length > 0, length, 1)

    def _difference(self, first: _FirstPass, moved: Sequence[Tensor], step: Tensor) -> Tensor:
        replaying = ReplayedKinks(first.sides) if first.sides else nullcontext()
        with self._again(first) as (images, buffers), replaying:
            (slope,) = torch.autograd.grad(self._loss(moved, buffers, images, first.labels), images)
        return (slope - first.slope) / step

    def _exact_derivative(self, first: _FirstPass, along: Sequence[Tensor | None]) -> Tensor:
        with self._again(first) as (images, buffers):
            gradients = self._exact(buffers, images, first.labels).values()
            return _derivative(images, zip(gradients, along, strict=True))

    def _exact(self, buffers: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return loss_gradients(self._model, self._parameters, buffers, images, labels, self._loss_fn, create_graph=True)

    def _loss(
        self, parameters: Iterable[Tensor], buffers: Mapping[str, Tensor], images: Tensor, labels: Tensor
    ) -> Tensor:
        state = {**dict(zip(self._parameters, parameters, strict=True)), **buffers}
        return self._loss_fn(self._called(state, (images,)), labels)

    @contextmanager
    def _again(self, first: _FirstPass) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Images of a new graph, and buffers, for one more pass in which dropout draws what it drew in the first."""
        devices, states = first.devices
        with torch.random.fork_rng(devices):
            torch.set_rng_state(first.random)
            set_device_states(devices, states)
            # The first pass has moved the buffers already.
            yield first.images.detach().requires_grad_(), {n: tensor.clone() for n, tensor in self._buffers.items()}
        self._recorder.take()


@dataclass(frozen=True)
class _FirstPass:
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


class _ByTwoPasses(torch.autograd.Function):
    """From images to the gradient by each parameter, then mean and variance of each batch-norm layer."""

    @staticmethod
    def forward(
        ctx: Any, gradient: SimulatedGradient, sizes: dict[str, int], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            first = gradient.first_pass(images, labels)
        sizes.update({name: statistics.size for name, statistics in first.statistics.items()})
        ctx.gradient, ctx.first = gradient, first
        # Of what no loss reads no derivative is taken.
        ctx.set_materialize_grads(False)
        # What is kept for the backward pass must not be what is returned, which has this pass as its origin: a circle
        # of the two is never freed.
        return tuple(tensor.detach() for tensor in (*first.gradients, *first.flat_statistics()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[None, None, Tensor, None]:
        first: _FirstPass = ctx.first
        along, others = given[: len(first.gradients)], given[len(first.gradients) :]
        with torch.enable_grad():
            found = _derivative(first.images, zip(first.flat_statistics(), others, strict=True))
            if any(v is not None for v in along):
                found = found + ctx.gradient.derivative(first, along)
        return None, None, found, None


class _LossByTwoPasses(torch.autograd.Function):
    """From images to a loss of the gradient, then mean and variance of each batch-norm layer."""

    @staticmethod
    def forward(
        ctx: Any, gradient: SimulatedGradient, loss: UpdateLoss, sizes: dict[str, int], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            first = gradient.first_pass(images, labels)
        sizes.update({name: statistics.size for name, statistics in first.statistics.items()})
        value, slope = loss(first.gradients)
        ctx.gradient, ctx.loss, ctx.first, ctx.slope = gradient, loss, first, slope
        ctx.set_materialize_grads(False)
        return value, *(tensor.detach() for tensor in first.flat_statistics())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor | None, *others: Tensor | None) -> tuple[None, None, None, Tensor, None]:
        first: _FirstPass = ctx.first
        with torch.enable_grad():
            found = _derivative(first.images, zip(first.flat_statistics(), others, strict=True))
            if by_loss is not None:
                found = found + by_loss * ctx.gradient.derivative_of_loss(first, ctx.loss, ctx.slope)
        return None, None, None, found, None


def _derivative(images: Tensor, pairs: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    """``d sum <v, t> / dx`` over pairs (t, v), of which those without v, or without a graph, count nothing."""
    reached = [(tensor, v) for tensor, v in pairs if v is not None and tensor.requires_grad]
    if not reached:
        return torch.zeros_like(images)
    tensors, directions = zip(*reached, strict=True)
    return torch.autograd.grad(tensors, images, directions, allow_unused=True, materialize_grads=True)[0]
