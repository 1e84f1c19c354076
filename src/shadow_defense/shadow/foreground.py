"""Step 8: spare the pixels that the diagnosis rests on."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.errors import DataError
from shadow_defense.models.class_activation import class_activation_maps, keep_top, scale_to_image
from shadow_defense.shadow.batch import ShadowBatch
from shadow_defense.shadow.task import TrainingTask, check_finite


def read_foreground(given: Tensor | np.ndarray, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    """A user's map of what the diagnosis rests on, such as a mask, min-max scaled to [0, 1] for each image.

    Args:
        given: (n, h, w) or (n, 1, h, w), finite, of any type that numbers have.

    Raises:
        DataError: for another shape, NaN or infinity.
    """
    maps = (
        torch.as_tensor(np.array(given) if isinstance(given, np.ndarray) else given)
        .detach()
        .as_subclass(Tensor)
        .to(images.device, images.dtype)
    )
    maps = maps.squeeze(1) if maps.dim() == 4 and maps.shape[1] == 1 else maps
    size = (images.shape[2], images.shape[3])
    if maps.shape != (len(images), *size):
        raise DataError(f"foreground of shape {tuple(maps.shape)}: expected {(len(images), *size)}, a map an image")
    if not torch.isfinite(maps).all():
        raise DataError("foreground holds NaN or infinity: give weights of 0 and more")
    return scale_to_image(maps, size)


def diagnosed_foreground(
    batch: ShadowBatch, task: TrainingTask, layer: str, cam_class: int | Literal["label"]
) -> Float[Tensor, "m h w"]:
    """Grad-CAM++ of the batch's samples at the global model, of their labels or of one class.

    Raises :class:`DefenseError` where it is NaN or infinity.
    """
    clean, labels = batch.images[batch.firsts], batch.labels[batch.firsts]
    if cam_class != "label":
        labels = torch.full((len(clean),), cam_class, device=clean.device)
    maps = class_activation_maps(task.model, task.global_state, clean, labels, layer, logits=task.logits)
    check_finite("Grad-CAM++", dict(zip(batch.samples, maps, strict=True)), "correct the model; no update leaves")
    return maps


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
