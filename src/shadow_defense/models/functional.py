"""Task models as functions of their parameters: losses and gradients that leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.named_state import ModelState, named_state

LossFunction = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put ``model`` in train or eval mode for the block; each module gets its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    if any(mode != training for _, mode in modes):
        model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            # A module's attribute takes long to set.
            if module.training != mode:
                module.training = mode


class Substitution:
    """``model(*inputs)`` with other tensors in place of its own, each under any of its names.

    ``torch.func.functional_call`` exchanges a tensor once for every name. Where a *module* has two names, the second
    exchange takes the substitute for the original, and leaves it in the model (pytorch issue 164759). Here every
    place, a module and an attribute, is filled once. The places are looked for once, and filled without that
    function's checks of each name: in a loop over a small network both take as long as a layer.

    Args:
        names: of the tensors that are exchanged.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        named = dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))
        given = {id(named[name]): name for name in names}
        self._model = model
        self._places: list[tuple[dict[str, Any], str, str]] = []
        for module in model.modules():
            for own in (module._parameters, module._buffers):
                self._places += [(own, key, given[id(own[key])]) for key in own if id(own[key]) in given]

    def __call__(self, tensors: Mapping[str, Tensor], inputs: tuple[object, ...]) -> Any:
        originals = [own[key] for own, key, _ in self._places]
        try:
            for own, key, name in self._places:
                own[key] = tensors[name]
            return self._model(*inputs)
        finally:
            for (own, key, _), original in zip(self._places, originals, strict=True):
                own[key] = original


def functional_call(model: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[object, ...]) -> Any:
    """``model(*inputs)`` with ``tensors`` in place of its own, once (:class:`Substitution`)."""
    return Substitution(model, tensors)(tensors, inputs)


def split_state(
    model: nn.Module, state: ModelState, like: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached copies of the trainable parameters, and of everything else, of ``state``.

    Args:
        model: says by ``requires_grad`` which parameters are trainable.
        state: another instance of the same architecture, the same instance, or its state dict.
        like: gives device and precision of the copies, where they are not to be the state's own.

    Returns:
        Trainable parameters as fresh leaves that require gradients, and clones of frozen parameters and buffers
        (a forward pass in train mode writes to the buffers that it is given: they must not be the model's own).
        Each tensor once, under its first name in the model.

    Raises:
        ModelError: naming a tensor that does not fit, see :func:`named_state`.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters, rest = {}, {}
    for name, tensor in named_state(model, state).items():
        if like is not None:
            tensor = tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)
        if name in trainable:
            parameters[name] = tensor.clone().requires_grad_()
        else:
            rest[name] = tensor.clone()
    return parameters, rest


def loss_gradients(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    loss_fn: LossFunction,
    *,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """The gradient of ``loss_fn(model(images), labels)`` with respect to ``parameters``, by name.

    Runs in whatever mode the model is in; in train mode ``buffers`` are updated in place. With ``create_graph``
    the result can be differentiated once more with respect to ``images``. A parameter that the loss does not
    reach gets a gradient of zeros.
    """
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        outputs = functional_call(model, {**parameters, **buffers}, (images,))
    gradients = torch.autograd.grad(
        loss_fn(outputs, labels),
        list(parameters.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(parameters, gradients, strict=True))


def nested_gradients(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    loss_fn: LossFunction,
    recorder: BatchStatisticsRecorder,
) -> tuple[dict[str, Tensor], dict[str, BatchStatistics]]:
    """What :func:`loss_gradients` with ``create_graph`` gives, and what ``recorder`` saw, inside ``torch.func.vmap``.

    ``torch.autograd.grad`` cannot be called there. The buffers are copied: train mode writes to the copies, which
    every example of the batch has to have for itself, so that ``buffers`` are mapped over as well.
    """
    sizes = dict[str, int]()

    def loss(parameters: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        own = {name: tensor.clone() for name, tensor in buffers.items()}
        with sdpa_kernel(SDPBackend.MATH):
            outputs = functional_call(model, {**parameters, **own}, (images,))
        recorded = recorder.take()
        sizes.update({name: statistics.size for name, statistics in recorded.items()})
        # torch.func lets nothing but tensors out.
        return loss_fn(outputs, labels), {name: (each.mean, each.variance) for name, each in recorded.items()}

    gradients, recorded = grad(loss, has_aux=True)(dict(parameters))
    statistics = {name: BatchStatistics(mean, variance, sizes[name]) for name, (mean, variance) in recorded.items()}
    return gradients, statistics
