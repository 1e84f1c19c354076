"""What a later generation added to Inverting Gradients (docs/attacks.md)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.attacks.label_recovery import last_linear_layer
from shadow_defense.models.functional import functional_call


def soft_sign(gradient: Tensor, share: float) -> Tensor:
    """``tanh(g s) / s`` with s = 1 - the share of the iterations done: near the gradient at the end.

    >>> soft_sign(torch.tensor([0.0, 100.0]), 0.5).tolist()
    [0.0, 2.0]
    """
    sharpness = 1 - share
    return torch.tanh(gradient * sharpness) / sharpness


def opponent_variation(images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """``mean (|dx|^2 + |dy|^2)^(1/2)``, over the channels and, of colour images, over their differences too.

    Differences at the far border are against zero. A pixel without any has gradient zero, not infinity.
    """
    if images.shape[1] == 3:
        red, green, blue = images.unbind(1)
        images = torch.cat([images, torch.stack([red - green, red - blue, green - blue], dim=1)], dim=1)
    right, down = (F.pad(images, pad) for pad in ((0, 1, 0, 0), (0, 0, 0, 1)))
    squares = (right[..., 1:] - images).square() + (down[..., 1:, :] - images).square()
    return squares.clamp_min(1e-12).sqrt().mean()


def tiled_start(shape: tuple[int, int, int, int], side: int, draws: torch.Generator) -> Float[Tensor, "n c h w"]:
    """One pattern of ``side`` x ``side`` pixels of N(0, 1) for each image, repeated over it."""
    count, channels, height, width = shape
    pattern = torch.randn(count, channels, side, side, generator=draws)
    return pattern.repeat(1, 1, -(-height // side), -(-width // side))[..., :height, :width].clone()


def leaked_features(
    model: nn.Module, updates: Mapping[str, Tensor], labels: Int64[Tensor, "n"]
) -> Float[Tensor, "n f"] | None:
    """``dW_c / db_c`` of the last linear layer for each label c: about what it read of the images of class c.

    Exact for one image of a class that only its own row belongs to. None where the layer's update is not known or
    where its bias did not move for one of the labels.
    """
    layer = last_linear_layer(model)
    weight, bias = updates.get(f"{layer}.weight"), updates.get(f"{layer}.bias")
    if weight is None or bias is None or not bool((bias[labels] != 0).all()):
        return None
    return weight[labels] / bias[labels].unsqueeze(1)


def head_features(
    model: nn.Module, state: Mapping[str, Tensor], images: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n f"]:
    """What the last linear layer reads of ``images``, at ``state``, on the graph."""
    seen: list[Tensor] = []
    layer = model.get_submodule(last_linear_layer(model))
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        functional_call(model, dict(state), (images,))
    finally:
        handle.remove()
    return seen[0]
