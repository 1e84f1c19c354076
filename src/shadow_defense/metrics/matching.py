"""Which reconstruction belongs to which true image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.errors import DataError
from shadow_defense.metrics.lpips import Lpips
from shadow_defense.metrics.psnr import pairwise_psnr
from shadow_defense.metrics.ssim import pairwise_ssim

UNMATCHED = -1


def pairwise_costs(
    reconstructions: Float[Tensor, "n c h w"], truths: Float[Tensor, "m c h w"], lpips_model: Lpips | None = None
) -> dict[str, Float[Tensor, "n m"]]:
    """Cost of every pair under every metric, lower is closer: ``-psnr``, ``-ssim`` and, with a model, ``lpips``.

    Rows are reconstructions, columns truths. Errors are those of the metrics.
    """
    costs = {"psnr": -pairwise_psnr(reconstructions, truths), "ssim": -pairwise_ssim(reconstructions, truths)}
    if lpips_model is not None:
        costs["lpips"] = lpips_model.pairwise(reconstructions, truths)
    return costs


def match(cost: Float[Tensor, "n m"]) -> Int64[Tensor, " n"]:
    """The truth of each reconstruction under the one-to-one assignment of least total cost.

    Args:
        cost: reconstructions by truths, lower is closer.

    Returns:
        For each reconstruction the index of its truth, to be used as ``truths[match(cost)]``; -1 for
        reconstructions left over when there are more of them than truths.

    Raises:
        DataError: when a cost is not finite.

    >>> match(torch.tensor([[9.0, 0.0, 9.0], [9.0, 9.0, 0.0], [0.0, 9.0, 9.0]]))
    tensor([1, 2, 0])
    """
    from scipy.optimize import linear_sum_assignment

    if not torch.isfinite(cost).all():
        raise DataError("the cost of a pair is NaN or infinite: leave out images that are not finite")
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    assignment = torch.full((cost.shape[0],), UNMATCHED, dtype=torch.int64)
    assignment[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return assignment


def best_over_client_images(cost: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """Each reconstruction's least cost over all of the client's images, as the paper's evaluation takes it.

    This flatters the attacker: several reconstructions may claim one image, and called once per metric, each
    metric may choose another image. Use it to stand beside published numbers; :func:`match` gives the honest one.

    Raises:
        DataError: without any image to choose from.

    >>> best_over_client_images(torch.tensor([[3.0, 1.0], [4.0, 1.0]]))
    tensor([1., 1.])
    """
    if cost.shape[1] == 0:
        raise DataError("the client has no images to match against: give at least one")
    return cost.amin(dim=1)
