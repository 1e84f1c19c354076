"""Whether reconstructions tell whose images they are: nearest neighbours in a gallery, by a network's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from shadow_defense.errors import DataError
from shadow_defense.models.class_activation import find_cam_layer
from shadow_defense.models.functional import training_mode
from shadow_defense.placement import device_of

_IMAGES_AT_ONCE = 64


def pooled_features(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    """The model's last feature map averaged over its pixels, in eval mode, for images normalised as in training.

    Departure: the published evaluation feeds images that are not normalised, on which the
    network was never trained. Raises :class:`ModelError` for a model without a feature map.
    """
    layer = model.get_submodule(find_cam_layer(model, images[:1].to(device_of(model))))
    features: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: features.append(output.mean(dim=(2, 3)).cpu()))
    try:
        with torch.no_grad(), training_mode(model, False):
            for chunk in images.split(_IMAGES_AT_ONCE):
                model(chunk.to(device_of(model)))
    finally:
        handle.remove()
    return torch.cat(features)


def identified(
    features: Float[Tensor, "n k"], gallery: Float[Tensor, "m k"], owned: Bool[Tensor, " m"], nearest: int
) -> Int64[Tensor, " n"]:
    """For each reconstruction, how many of its ``nearest`` gallery images by cosine are the client's own.

    Args:
        gallery: features of the client's images and of others'.
        owned: true where a gallery image is the client's.

    Raises:
        DataError: when the gallery has fewer than ``nearest`` images, or only the client's.

    >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> identified(torch.tensor([[2.0, 0.1]]), gallery, torch.tensor([True, False, False]), 2).tolist()
    [1]
    """
    if nearest < 1 or len(gallery) < nearest:
        raise DataError(f"a gallery of {len(gallery)} images has no {nearest} nearest: give a larger one")
    if owned.all():
        raise DataError("the gallery holds the client's images alone: add images of others")
    similarity = F.normalize(features.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T
    return owned[similarity.topk(nearest, dim=1).indices].sum(dim=1)


def identifiability_precision(hits: Int64[Tensor, " n"]) -> float:
    """k-IIP: hits among the k nearest, summed over the reconstructions and divided by their number.

    From 0 to k, not a share: as published, the sum is not divided by k (Hatamizadeh et al. 2023). With k = 1 it is the
    share of reconstructions whose nearest image is the client's. Raises :class:`DataError` without reconstructions.

    >>> identifiability_precision(torch.tensor([3, 1, 0, 2]))
    1.5
    """
    if len(hits) == 0:
        raise DataError("no reconstructions to identify: give at least one")
    return hits.double().mean().item()
