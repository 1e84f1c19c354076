"""A thumbnail an image, by which another image under the same id is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError

SIDE = 8
"""Pixels on a side: a flip, a shift by a pixel or another contrast moves some of them by more than a grey level."""

TOLERANCE = 1 / 255
"""Greatest difference of one image read twice, in units of [0, 1]: one grey level, more than half precision rounds."""


def thumbnails(images: Float[Tensor, "n c h w"], normalisation: Normalisation) -> Float[Tensor, "n c s s"]:
    """The images in [0, 1], averaged to 8 x 8 px."""
    return F.adaptive_avg_pool2d(normalisation.invert(images), SIDE)


def differ(first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]) -> Bool[Tensor, " n"]:
    """Where two sets of images in [0, 1] are farther apart than one image read twice."""
    return (first - second).abs().flatten(1).amax(1) > TOLERANCE


def check_known(
    known: Mapping[str, Float[Tensor, "c s s"]],
    images: Float[Tensor, "n c h w"],
    samples: Sequence[str],
    normalisation: Normalisation,
) -> None:
    """Raise :class:`DataError`, naming the sample, where an image is not the one that its id stood for before."""
    now = thumbnails(images, normalisation).cpu()
    for sample, thumbnail in zip(samples, now, strict=True):
        before = known.get(sample)
        if before is not None and (before.shape != thumbnail.shape or differ(before[None], thumbnail[None]).any()):
            raise DataError(
                f"another image was protected under the id '{sample}' before: protect first and augment afterwards, or "
                "give every augmented view an id of its own (docs/guard.md)"
            )


def check_size(noise_maps: Mapping[str, Float[Tensor, "1 s t"]], images: Float[Tensor, "n c h w"]) -> None:
    """Raise :class:`DataError` for images of another size than those that the maps are of."""
    known = next(iter(noise_maps.values()), None)
    if known is not None and known.shape[1:] != images.shape[2:]:
        (before, width), (now, other) = known.shape[1:], images.shape[2:]
        raise DataError(
            f"images of {now} x {other} px, but the guard has protected images of {before} x {width} px before: resize "
            "them, or make a guard anew"
        )
