"""What several reconstructions of the same images agree on (Yin et al. 2021; docs/attacks.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def registered(
    images: Float[Tensor, "n c h w"], reference: Float[Tensor, "n c h w"], furthest: int
) -> Float[Tensor, "n c h w"]:
    """Each image moved by the whole pixels, at most ``furthest`` each way, that bring it nearest to its reference.

    Least squares over the shifts; what a shift uncovers repeats the border. Yin et al. register by dense flow between
    features of a pretrained network; translations are what an update of a convolutional network leaves open most.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (furthest,) * 4, mode="replicate")
    shifts = range(2 * furthest + 1)
    moved = torch.stack([padded[..., y : y + height, x : x + width] for y in shifts for x in shifts])
    nearest = (moved - reference).square().flatten(2).sum(2).argmin(0)
    return moved[nearest, torch.arange(len(images), device=images.device)]


def matched_order(
    images: Float[Tensor, "n c h w"], reference: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
) -> Int64[Tensor, " n"]:
    """The order of ``images`` that brings them nearest to ``reference``, where only equal labels change places.

    An update does not say in which order a batch holds two images of a class: two seeds may rebuild them either way.

    >>> images = torch.tensor([0.0, 5.0, 9.0]).view(3, 1, 1, 1)
    >>> matched_order(images, images[[1, 0, 2]], torch.tensor([0, 0, 1])).tolist()
    [1, 0, 2]
    """
    from scipy.optimize import linear_sum_assignment

    order = torch.arange(len(images))
    for label in labels.unique().tolist():
        (places,) = (labels == label).nonzero(as_tuple=True)
        if len(places) > 1:
            cost = torch.cdist(reference[places].flatten(1), images[places].flatten(1)).square()
            _, chosen = linear_sum_assignment(cost.cpu().numpy())
            order[places] = places[torch.as_tensor(chosen)]
    return order


def consensus(
    candidates: Float[Tensor, "r n c h w"], labels: Int64[Tensor, " n"], furthest: int
) -> Float[Tensor, "r n c h w"]:
    """For each candidate the mean of all of them, in that candidate's own order of equal labels.

    Orders follow the first candidate. With ``furthest`` above 0 each candidate is registered to the pixel mean first,
    and the mean of the registered ones is returned.
    """
    orders = [matched_order(candidate, candidates[0], labels) for candidate in candidates]
    aligned = torch.stack([candidate[order] for candidate, order in zip(candidates, orders, strict=True)])
    mean = aligned.mean(0)
    if furthest:
        mean = torch.stack([registered(candidate, mean, furthest) for candidate in aligned]).mean(0)
    return torch.stack([mean[order.argsort()] for order in orders])
