"""Whether an image can be found again: among all clean images, and by its patient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.errors import DataError


def hits(similarity: Float[Tensor, "n m"], own: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 where a probe's own gallery image is the most similar one, shared out where several are; their mean is rank-1.

    Args:
        similarity: of every probe to every gallery image.
        own: place of each probe's own image in the gallery.

    Raises:
        DataError: when the gallery has one image only.

    >>> hits(torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1]]), torch.tensor([0, 1]))
    tensor([1.0000, 0.5000])
    """
    _check(similarity)
    best = similarity.max(dim=1, keepdim=True).values
    first = (similarity == best).float()
    return first.gather(1, own[:, None])[:, 0] / first.sum(dim=1)


def ranks_above(similarity: Float[Tensor, "n m"], own: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """For each probe the share of the other gallery images that are less similar than its own, ties as halves.

    Their mean is the area under the ROC curve of each probe's own gallery; 0.5 by chance.
    Raises :class:`DataError` as :func:`hits`.

    >>> ranks_above(torch.tensor([[0.2, 0.1, 0.9]]), torch.tensor([0]))
    tensor([0.5000])
    """
    _check(similarity)
    mine = similarity.gather(1, own[:, None])
    below = (similarity < mine).sum(dim=1) + 0.5 * ((similarity == mine).sum(dim=1) - 1)
    return below.float() / (similarity.shape[1] - 1)


def patient_ranks_above(
    similarity: Float[Tensor, "n m"], own: Int64[Tensor, " n"], groups: Sequence[str]
) -> Float[Tensor, " p"]:
    """As :func:`ranks_above` for *other* images of the same patient: mean over them, against those of other patients.

    Args:
        groups: the patient of each gallery image; a probe's is that of its own image.

    Returns:
        One number for each probe whose patient has another image in the gallery, and one of another patient.
    """
    names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    patient = torch.tensor([names[name] for name in groups])
    found = []
    for row, mine in zip(similarity, own, strict=True):
        same = patient == patient[mine]
        others = row[~same]
        same[mine] = False
        if same.any() and len(others):
            wanted = row[same][:, None]
            found.append(((others < wanted).float() + 0.5 * (others == wanted).float()).mean())
    return torch.stack(found) if found else similarity.new_zeros(0)


def _check(similarity: Tensor) -> None:
    if similarity.shape[1] < 2:
        raise DataError(f"a gallery of {similarity.shape[1]} images: expected two at least; give more images")
