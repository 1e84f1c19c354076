"""The gradient that images would give, differentiated by the images without a backward pass through a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import get_device_states, set_device_states

from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction, Substitution, functional_call, loss_gradients, training_mode
from shadow_defense.models.kinks import RecordedKinks, ReplayedKinks
from shadow_defense.models.two_passes import FirstPass, derivative_along, on_the_graph
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


def layout_for(
    model: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Float[Tensor, "n c h w"]
) -> Callable[[Tensor], Tensor]:
    """:func:`channels_last`, or nothing where the model takes its feature maps to lie as usual.

    So does ``x.view(-1, 400)``, with which networks are often written: it refuses what lies otherwise. The same goes
    for a loss of outputs that are maps.

    Args:
        images: to try it on, in eval mode, of which one is enough.
    """
    laid = {name: channels_last(tensor) for name, tensor in parameters.items()}
    try:
        with torch.no_grad(), training_mode(model, False):
            output = functional_call(model, {**laid, **buffers}, (images[:1],))
    except torch.OutOfMemoryError:
        raise
    # Whatever a stranger's model raises; what has nothing to do with the layout it raises again where it is run.
    except Exception:
        return _as_it_lies
    return _as_it_lies if isinstance(output, Tensor) and not output.is_contiguous() else channels_last


def _as_it_lies(tensor: Tensor) -> Tensor:
    return tensor


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
            fastest as :func:`layout_for` has them.
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
        first = self.first_pass(images, labels)
        gradients, statistics = on_the_graph(images, first, first.gradients, partial(self._derivative, first))
        return dict(zip(self._parameters, gradients, strict=True)), statistics

    def loss(
        self, images: Float[Tensor, "n c h w"], labels: Tensor, loss: UpdateLoss
    ) -> tuple[Float[Tensor, ""], dict[str, BatchStatistics]]:
        """``loss`` of the gradient and the statistics, on the graph of ``images``, which serves for one derivative.

        What calling the object and ``loss`` in its turn gives, without tensors as large as the gradient between them.
        """
        first = self.first_pass(images, labels)
        value, slope = loss(first.gradients)

        def derivation(along: Sequence[Tensor | None]) -> Tensor:
            (by_loss,) = along
            assert by_loss is not None
            return by_loss * self._derivative_of_loss(first, loss, slope)

        (value,), statistics = on_the_graph(images, first, [value], derivation)
        return value, statistics

    @torch.enable_grad()
    def first_pass(self, images: Tensor, labels: Tensor) -> FirstPass:
        """The pass at theta, with all that the second has to share with it."""
        random = torch.get_rng_state()
        devices = ([], []) if images.device.type == "cpu" else get_device_states(images)
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
        return FirstPass(images, labels, gradients, slope, kinks.sides, statistics, random, devices)

    def _derivative(self, first: FirstPass, along: Sequence[Tensor | None]) -> Tensor:
        """``d <v, g> / dx`` for v = ``along``, a tensor for each parameter; None stands for zeros."""
        if self.exact:
            return self._exact_derivative(first, along)
        return self._checked(first, self._difference_along(first, along), along)

    def _derivative_of_loss(self, first: FirstPass, loss: UpdateLoss, slope: LossSlope) -> Tensor:
        """:meth:`_derivative` along that of a loss, which is made of its numbers in the place of the second pass."""
        if self.method == "difference":
            return self._difference_of_loss(first, loss, slope)
        mixed = zip(loss.constants, first.gradients, slope.own, slope.scale, strict=True)
        along = [torch.addcmul(c, g, own) * scale for c, g, own, scale in mixed]
        if self.exact:
            return self._exact_derivative(first, along)
        return self._checked(first, self._difference_of_loss(first, loss, slope), along)

    def _checked(self, first: FirstPass, found: Tensor, along: Sequence[Tensor | None]) -> Tensor:
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

    def _difference_of_loss(self, first: FirstPass, loss: UpdateLoss, slope: LossSlope) -> Tensor:
        step = self._step(slope.length)
        for still, c, g, own, scale, place in zip(
            self._constants, loss.constants, first.gradients, slope.own, step * slope.scale, self._moved, strict=True
        ):
            # Mixed before it moves a parameter: what moves it is so small that each sum rounds some of it off.
            torch.addcmul(still, torch.addcmul(c, g, own, out=place), scale, out=place)
        return self._difference(first, self._moved, step)

    def _difference_along(self, first: FirstPass, along: Sequence[Tensor | None]) -> Tensor:
        step = self._step(get_total_norm([v for v in along if v is not None]))
        moved = [
            still if v is None else torch.addcmul(still, v, step, out=place)
            for still, v, place in zip(self._constants, along, self._moved, strict=True)
        ]
        return self._difference(first, moved, step)

    def _step(self, length: Tensor) -> Tensor:
        # Along zeros no parameter moves, whatever the step.
        return STEP * self._length / torch.where(length > 0, length, 1)

    def _difference(self, first: FirstPass, moved: Sequence[Tensor], step: Tensor) -> Tensor:
        replaying = ReplayedKinks(first.sides) if first.sides else nullcontext()
        with self._again(first) as (images, buffers), replaying:
            (slope,) = torch.autograd.grad(self._loss(moved, buffers, images, first.labels), images)
        return (slope - first.slope) / step

    def _exact_derivative(self, first: FirstPass, along: Sequence[Tensor | None]) -> Tensor:
        with self._again(first) as (images, buffers):
            gradients = self._exact(buffers, images, first.labels).values()
            return derivative_along(images, zip(gradients, along, strict=True))

    def _exact(self, buffers: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return loss_gradients(self._model, self._parameters, buffers, images, labels, self._loss_fn, create_graph=True)

    def _loss(
        self, parameters: Iterable[Tensor], buffers: Mapping[str, Tensor], images: Tensor, labels: Tensor
    ) -> Tensor:
        state = {**dict(zip(self._parameters, parameters, strict=True)), **buffers}
        return self._loss_fn(self._called(state, (images,)), labels)

    @contextmanager
    def _again(self, first: FirstPass) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Images of a new graph, and buffers, for one more pass in which dropout draws what it drew in the first."""
        devices, states = first.devices
        with torch.random.fork_rng(devices):
            torch.set_rng_state(first.random)
            set_device_states(devices, states)
            # The first pass has moved the buffers already.
            yield first.images.detach().requires_grad_(), {n: tensor.clone() for n, tensor in self._buffers.items()}
        self._recorder.take()
