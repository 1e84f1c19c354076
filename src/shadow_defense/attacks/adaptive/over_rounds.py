"""Averaging over rounds: what moves from round to round goes, what stays adds up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.errors import DataError


def average_over_rounds(
    reconstructions: Sequence[Float[Tensor, "n c h w"]], labels: Sequence[Int64[Tensor, " n"]]
) -> Float[Tensor, "n c h w"]:
    """The mean of one client's reconstructions from several rounds, in the order of the last round.

    ``x_i = 1/R sum_r y_{r, pi_r(i)}``, where the permutation ``pi_r`` has the least summed squared distance to the
    last round's images among those that pair equal labels; where two rounds disagree about the labels, among those
    that pair as many equal ones as can be. Rounds that hold NaN or infinity are left out; where the last is one of
    them, the round before it is matched against instead and takes the last one's place by its labels.

    Args:
        reconstructions: of each round, oldest first, each in an order of its own; in any one unit.
        labels: of each round, in the order of its reconstructions.

    Raises:
        DataError: without a round that is finite, or where rounds differ in shape or have no labels.

    >>> first, last = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0.8, 0.2]).view(2, 1, 1, 1)
    >>> average_over_rounds([first, last], [torch.tensor([1, 1])] * 2).flatten().tolist()
    [0.8999999761581421, 0.10000000149011612]
    """
    if not reconstructions or len(reconstructions) != len(labels):
        raise DataError(
            f"{len(reconstructions)} rounds of reconstructions with {len(labels)} of labels: expected at least one "
            "round and labels for each"
        )
    shapes = sorted({tuple(images.shape) for images in reconstructions})
    if len(shapes) > 1:
        raise DataError(f"rounds with reconstructions of shapes {shapes}: give rounds of one client, alike in shape")
    finite = [index for index, images in enumerate(reconstructions) if torch.isfinite(images).all()]
    if not finite:
        raise DataError(f"all {len(reconstructions)} rounds hold NaN or infinity: leave out the average over rounds")
    newest = finite[-1]
    reference, wanted = reconstructions[newest], labels[-1]
    if newest != len(reconstructions) - 1:
        reference = reference[_pairing(torch.zeros(len(wanted), len(wanted)), wanted, labels[newest])]
    total = torch.zeros_like(reference)
    for index in finite:
        images = reconstructions[index]
        distances = (reference.flatten(1)[:, None] - images.flatten(1)[None]).double().square().sum(2)
        total += images[_pairing(distances, wanted, labels[index])]
    return total / len(finite)


def _pairing(distances: Float[Tensor, "n n"], rows: Int64[Tensor, " n"], columns: Int64[Tensor, " n"]) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    # Dearer than all distances together: no distance is worth one pair across labels.
    across = (rows[:, None] != columns[None]) * (distances.sum() + 1)
    return torch.from_numpy(linear_sum_assignment((distances + across).cpu().numpy())[1]).to(rows.device)
