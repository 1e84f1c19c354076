"""A model as the plain chain of layers that R-GAP walks back through."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.attacks.analytic import probe_images
from shadow_defense.errors import ModelError
from shadow_defense.models.functional import training_mode

SATURATION = 1e-12
"""How near to its limits the value of a saturating activation is taken to come."""


def _logit(values: Tensor) -> Tensor:
    return values.clamp(SATURATION, 1 - SATURATION).logit()


def _inverse_tanh(values: Tensor) -> Tensor:
    return values.clamp(SATURATION - 1, 1 - SATURATION).atanh()


def _inverse(activation: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """From an activation's output to its input; None for one that cannot be inverted, such as ReLU."""
    if isinstance(activation, nn.Sigmoid):
        return _logit
    if isinstance(activation, nn.Tanh):
        return _inverse_tanh
    if isinstance(activation, nn.LeakyReLU) and activation.negative_slope > 0:
        slope = activation.negative_slope
        return lambda values: torch.where(values < 0, values / slope, values)
    return None


@dataclass(frozen=True)
class Link:
    """One linear layer of the chain with the activation behind it.

    Attributes:
        input_shape: of one sample.
        inverse: from the activation's output to the layer's; None where there is no activation.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    input_shape: tuple[int, ...]
    activation: nn.Module | None = None
    inverse: Callable[[Tensor], Tensor] | None = None


def layer_chain(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Link]:
    """The chain from image to logits, found by a probing forward pass and checked by running it.

    Raises:
        ModelError: for a model that is no chain (skip connections, pooling, normalisation), or holds an activation that
            cannot be inverted, or a convolution with groups, dilation or padding other than zeros.
    """
    probe = probe_images(model, image_shape)
    calls, handles = list[tuple[str, nn.Module, Float[Tensor, "..."]]](), []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):

            def record(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls.append((name, module, inputs[0]))

            handles.append(module.register_forward_pre_hook(record))
    try:
        with torch.no_grad(), training_mode(model, False):
            logits = model(probe)
    finally:
        for handle in handles:
            handle.remove()
    links: list[Link] = []
    for name, module, given in calls:
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _plain(module)):
            links.append(Link(name, module, tuple(given.shape[1:])))
        elif (inverse := _inverse(module)) is not None and links and links[-1].activation is None:
            last = links[-1]
            links[-1] = Link(last.name, last.layer, last.input_shape, module, inverse)
        elif not isinstance(module, nn.Flatten | nn.Identity | nn.Dropout):
            raise _no_chain(f"{type(module).__name__} '{name}'")
    with torch.no_grad():
        values = probe
        for link in links:
            if values[0].numel() != math.prod(link.input_shape):
                raise _no_chain("a branch between its layers")
            values = link.layer(values.reshape(len(values), *link.input_shape))
            values = values if link.activation is None else link.activation(values)
    if values.shape != logits.shape or not torch.allclose(values, logits, rtol=1e-4, atol=1e-5):
        raise _no_chain("a branch between its layers")
    return links


def _plain(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _no_chain(found: str) -> ModelError:
    return ModelError(
        f"the model holds {found}: R-GAP needs a plain chain of convolutions and fully connected layers with sigmoid, "
        "tanh or leaky ReLU"
    )
