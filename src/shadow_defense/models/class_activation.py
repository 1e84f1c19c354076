"""Grad-CAM++: which pixels a model's decision rests on (Chattopadhay et al. 2018, arXiv:1710.11063)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shadow_defense.errors import DataError, ModelError
from shadow_defense.models.functional import functional_call, split_state, training_mode

LEAST_SHARE = 0.1
"""Share of its image's greatest target from which on a class counts: mixed images have several, smoothing adds none."""


def grad_cam_plus_plus(
    activations: Float[Tensor, "n k i j"], gradients: Float[Tensor, "n k i j"], scores: Float[Tensor, " n"]
) -> Float[Tensor, "n i j"]:
    """Grad-CAM++ (Chattopadhay et al. 2018, equations 15 and 19) of every image of a batch, rectified.

    ``alpha = g^2 / (2 g^2 + sum_pixels(a g^3) + 1e-7)``, a zero denominator counting as 1;
    ``w_k = sum_pixels alpha relu(exp(score) g)``; ``map = relu(sum_k w_k a_k)``.

    Args:
        activations: a, of the last convolutional block.
        gradients: g, of each image's class score with respect to a.
        scores: the class score (logit) of each image.
    """
    squared = gradients.square()
    cubed = (activations * gradients * squared).sum(dim=(2, 3), keepdim=True)
    denominator = 2 * squared + cubed
    denominator = torch.where(denominator != 0, denominator, torch.ones_like(denominator)) + 1e-7
    # exp(score) scales a whole map, which is scaled to [0, 1] anyway: bounded, so that it stays finite and above 0.
    positive = F.relu(scores.clamp(-60, 60).exp().view(-1, 1, 1, 1) * gradients)
    weights = (squared / denominator * positive).sum(dim=(2, 3))
    return F.relu(torch.einsum("nk,nkij->nij", weights, activations))


def scale_to_image(maps: Float[Tensor, "n i j"], image_size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Upsample bilinearly to ``image_size`` and min-max scale each map to [0, 1]; a constant map becomes zeros."""
    large = F.interpolate(maps.unsqueeze(1), size=image_size, mode="bilinear", align_corners=False).squeeze(1)
    flat = large.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return ((flat - low) / span).view_as(large)


def find_cam_layer(
    model: nn.Module, images: Float[Tensor, "n c h w"], state: nn.Module | Mapping[str, Tensor] | None = None
) -> str:
    """The name of the module whose output is the last feature map before pooling or flattening.

    That is the last module to finish, in a forward pass with the tensors of ``state`` (the model's own by default),
    with an output of shape (n, k, i, j) and more than one pixel. Raises :class:`ModelError` for a model that has none.
    """
    finished: list[str] = []
    handles = []
    parameters, buffers = split_state(model, model if state is None else state, like=images)
    for name, module in model.named_modules():

        def note(_: nn.Module, __: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                finished.append(name)

        handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad(), training_mode(model, False):
            functional_call(model, {**parameters, **buffers}, (images[:1],))
    finally:
        for handle in handles:
            handle.remove()
    if not finished:
        raise ModelError("the model has no convolutional feature map for Grad-CAM++: switch `foreground` off")
    return finished[-1]


def positive_classes(labels: Tensor, classes: int) -> Bool[Tensor, "n k"]:
    """Which classes each image's Grad-CAM++ is of: its class, or all that it has (multi-label, mixed images).

    Args:
        labels: (n,) or (n, 1), the class of each image, or for one logit its target; (n, k), a target for each class,
            of which those count that are at least :data:`LEAST_SHARE` of the image's greatest.
        classes: k, the number of logits.

    Raises:
        DataError: for classes that the model does not have.

    >>> positive_classes(torch.tensor([1, 0]), 2).tolist()
    [[False, True], [True, False]]
    >>> positive_classes(torch.tensor([[0.7, 0.3, 0.0]]), 3).tolist()
    [[True, True, False]]
    """
    count = len(labels)
    if labels.numel() == count:
        flat = labels.reshape(count)
        if classes == 1:
            return (flat >= 0.5).unsqueeze(1)
        chosen = flat.long()
        if not torch.equal(chosen.to(flat.dtype), flat) or not 0 <= int(chosen.min()) <= int(chosen.max()) < classes:
            raise DataError(
                f"classes {flat.min().item():g} to {flat.max().item():g} for Grad-CAM++: the model has 0 to "
                f"{classes - 1}; correct the labels or cam_class"
            )
        return torch.zeros(count, classes, dtype=torch.bool, device=labels.device).scatter_(1, chosen[:, None], True)
    if labels.shape != (count, classes):
        raise DataError(
            f"labels of shape {tuple(labels.shape)} for Grad-CAM++ with {classes} logits: give classes (n,) or a "
            "target for each logit (n, k), set cam_class to one class, or give a map as `foreground`"
        )
    greatest = labels.amax(1, keepdim=True)
    return (labels > 0) & (labels >= LEAST_SHARE * greatest)


def class_activation_maps(
    model: nn.Module,
    state: nn.Module | Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    layer: str,
    *,
    logits: Callable[[Any], Tensor] | None = None,
) -> Float[Tensor, "n h w"]:
    """Grad-CAM++ of ``model`` with the tensors of ``state``, scaled to [0, 1] at image size.

    Of each image's classes (:func:`positive_classes`) the largest value is kept at every pixel; an image without one
    gets zeros. In eval mode images do not influence one another, so one backward pass of the summed scores gives every
    image's gradient. No hook, gradient or mode is left behind. A sigmoid task with one logit takes ``+logit`` for
    class 1 and ``-logit`` for class 0.

    Args:
        labels: (n,) classes, or (n, k) targets.
        logits: takes (n, k) or (n,) logits out of what the model gives, where that is not them.

    Raises:
        ModelError: when the model has no module ``layer``, its output is no feature map, or the model gives no logits.
        DataError: for a class that the model does not have.
    """
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # A branch of the graph that starts here: gradients stop at the feature map.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    parameters, buffers = split_state(model, state, like=images)
    frozen = {name: tensor.detach() for name, tensor in {**parameters, **buffers}.items()}
    try:
        handle = model.get_submodule(layer).register_forward_hook(keep)
    except AttributeError as error:
        raise ModelError(f"the model has no module '{layer}': give cam_layer one it has, or null to find it") from error
    try:
        with training_mode(model, False), torch.enable_grad():
            outputs = functional_call(model, frozen, (images,))
    finally:
        handle.remove()
    if not kept or kept[-1].dim() != 4:
        raise ModelError(f"module '{layer}' gives no convolutional feature map: set cam_layer to null to find one")
    with torch.enable_grad():
        given = _as_logits(outputs if logits is None else logits(outputs), len(images))
        positive = positive_classes(labels, given.shape[1])
        if given.shape[1] == 1:
            scores, counted = torch.where(positive, given, -given), torch.ones_like(positive)
        else:
            most = max(int(positive.sum(1).max()), 1)
            order = positive.long().sort(dim=1, descending=True, stable=True).indices[:, :most]
            scores, counted = given.gather(1, order), positive.gather(1, order)
    maps = images.new_zeros(len(images), images.shape[2], images.shape[3])
    for rank in range(scores.shape[1]):
        (gradients,) = torch.autograd.grad(scores[:, rank].sum(), kept[-1], retain_graph=rank + 1 < scores.shape[1])
        of_class = grad_cam_plus_plus(kept[-1].detach(), gradients, scores[:, rank].detach())
        scaled = scale_to_image(of_class, (images.shape[2], images.shape[3]))
        maps = torch.maximum(maps, torch.where(counted[:, rank, None, None], scaled, torch.zeros_like(scaled)))
    return maps


def _as_logits(outputs: object, count: int) -> Float[Tensor, "n k"]:
    if isinstance(outputs, Tensor) and outputs.shape == (count,):
        return outputs.unsqueeze(1)
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and len(outputs) == count:
        return outputs
    what = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
    raise ModelError(
        f"the model gives {what}, Grad-CAM++ needs logits (n, classes): give ShadowGuard(logits=...) a function that "
        "takes them out, or for segmentation a map as `foreground`, or switch `foreground` off"
    )


def keep_top(cam: Float[Tensor, "n h w"], share: float = 0.3) -> Float[Tensor, "n h w"]:
    """Keep the ``int(h w share)`` largest pixels of each map and zero the others; ties fall to the first pixels."""
    flat = cam.flatten(1)
    kept = int(flat.shape[1] * share)
    indices = flat.topk(kept, dim=1).indices
    return torch.zeros_like(flat).scatter(1, indices, flat.gather(1, indices)).view_as(cam)
