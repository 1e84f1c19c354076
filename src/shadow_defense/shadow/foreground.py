"""Step 8: find the pixels that the diagnosis rests on (Grad-CAM++) and spare them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.errors import DataError, ModelError
from shadow_defense.models.functional import functional_call, split_state, training_mode


def grad_cam_plus_plus(
    activations: Float[Tensor, "n k i j"], gradients: Float[Tensor, "n k i j"], scores: Float[Tensor, "n"]
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


def find_cam_layer(model: nn.Module, images: Float[Tensor, "n c h w"]) -> str:
    """The name of the module whose output is the last feature map before pooling or flattening.

    That is the last module to finish, in a forward pass, with an output of shape (n, k, i, j) and more than one
    pixel. Raises :class:`ModelError` for a model that has none.
    """
    finished: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def note(_: nn.Module, __: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                finished.append(name)

        handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad(), training_mode(model, False):
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not finished:
        raise ModelError("the model has no convolutional feature map for Grad-CAM++: switch `foreground` off")
    return finished[-1]


def class_activation_maps(
    model: nn.Module,
    state: nn.Module | Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    classes: Int64[Tensor, "n"],
    layer: str,
) -> Float[Tensor, "n h w"]:
    """Grad-CAM++ of ``model`` with the parameters of ``state``, one class an image, scaled to [0, 1] at image size.

    In eval mode images do not influence one another, so one backward pass of the summed scores gives every
    image's gradient. No hook, gradient or mode is left behind. A sigmoid task with one logit takes ``+logit`` for
    class 1 and ``-logit`` for class 0.

    Raises:
        ModelError: when the model has no module ``layer`` or its output is no feature map.
        DataError: for a class that the model does not have.
    """
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # A branch of the graph that starts here: gradients stop at the feature map.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    parameters, buffers = split_state(model, state)
    frozen = {name: tensor.detach() for name, tensor in {**parameters, **buffers}.items()}
    try:
        handle = model.get_submodule(layer).register_forward_hook(keep)
    except AttributeError as error:
        raise ModelError(f"the model has no module '{layer}': give cam_layer one it has, or null to find it") from error
    try:
        with training_mode(model, False), torch.enable_grad():
            logits = functional_call(model, frozen, (images,))
    finally:
        handle.remove()
    if not kept or kept[-1].dim() != 4:
        raise ModelError(f"module '{layer}' gives no convolutional feature map: set cam_layer to null to find one")
    if logits.shape[1] > 1 and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]:
        raise DataError(
            f"classes {int(classes.min())} to {int(classes.max())} for Grad-CAM++: the model has 0 to "
            f"{logits.shape[1] - 1}; correct the labels or cam_class"
        )
    if logits.shape[1] == 1:
        scores = torch.where(classes > 0, logits[:, 0], -logits[:, 0])
    else:
        scores = logits.gather(1, classes.unsqueeze(1)).squeeze(1)
    (gradients,) = torch.autograd.grad(scores.sum(), kept[-1])
    maps = grad_cam_plus_plus(kept[-1].detach(), gradients, scores.detach())
    return scale_to_image(maps, (images.shape[2], images.shape[3]))


def keep_top(cam: Float[Tensor, "n h w"], share: float = 0.3) -> Float[Tensor, "n h w"]:
    """Keep the ``int(h w share)`` largest pixels of each map and zero the others; ties fall to the first pixels."""
    flat = cam.flatten(1)
    kept = int(flat.shape[1] * share)
    indices = flat.topk(kept, dim=1).indices
    return torch.zeros_like(flat).scatter(1, indices, flat.gather(1, indices)).view_as(cam)


def sparing_strength(round: int, rounds: int, low: float = 0.1, high: float = 0.5) -> float:
    """``alpha = clip(r / R, low, high)``: how strongly the foreground is spared in round r (0-based) of R.

    >>> sparing_strength(0, 100), sparing_strength(30, 100), sparing_strength(90, 100)
    (0.1, 0.3, 0.5)
    """
    return min(max(round / rounds, low), high)


def spare_foreground(
    noise_map: Float[Tensor, "n c h w"],
    cam: Float[Tensor, "n h w"],
    alpha: float,
    *,
    share: float = 0.3,
    temperature: float = 20.0,
) -> Float[Tensor, "n c h w"]:
    """``N4 = N3 - alpha sign(N3) L`` with ``L = softmax(top(cam) / T)`` over the image.

    At the authors' temperature of 20 a map in [0, 1] is nearly flat after the softmax, so that the term lowers
    the whole image by about ``alpha / (h w)``; a small temperature makes it point at the foreground.
    """
    mass = torch.softmax(keep_top(cam, share).flatten(1) / temperature, dim=1).view_as(cam).unsqueeze(1)
    return noise_map - alpha * noise_map.sign() * mass
