"""How much more an attack shows than a picture that was drawn without looking."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.inputs import check_same_shape


def relative_data_leakage(
    similarities: Float[Tensor, " n"], prior_similarities: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The relative data leakage value of each image, ``RDLV = (SSIM(x, r) - SSIM(x, p)) / SSIM(x, p)``.

    0: the reconstruction r is as similar to the image x as the prior p, which an attacker has without any update;
    1: twice as similar; below 0: worse than the prior (Hatamizadeh et al. 2023). NVFlare's code takes the
    greatest value over all pairs, with a data range of 256; here each reconstruction counts against its own image, with
    the SSIM of this package, so that means and intervals over images exist. An image whose SSIM to the prior is near 0
    outweighs the others in such a mean.

    Args:
        similarities: SSIM of each reconstruction to its image.
        prior_similarities: SSIM of the prior (a mean of public images) to the same images.

    Returns:
        In float64, NaN where the prior's SSIM is not above 0: a share of nothing means nothing.

    Raises:
        DataError: on unequal shapes.

    >>> relative_data_leakage(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
    tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """
    check_same_shape(similarities, prior_similarities)
    similar, prior = similarities.double(), prior_similarities.double()
    return torch.where(prior > 0, (similar - prior) / prior, torch.nan)
