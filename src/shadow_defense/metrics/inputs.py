"""What every image metric asks of its images, checked in one place."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.errors import DataError

# Rounding of a normalisation and its inverse in float32 leaves [0, 1] by this much.
ROUNDING = 1e-4


def check_same_shape(reconstructions: Float[Tensor, "..."], truths: Float[Tensor, "..."]) -> None:
    """Raise :class:`DataError` when two batches differ in shape: broadcasting would score pairs nobody meant."""
    if reconstructions.shape != truths.shape:
        raise DataError(
            f"reconstructions have shape {tuple(reconstructions.shape)} and truths {tuple(truths.shape)}: "
            "give pairs of equal shape (n, channels, height, width); match() pairs them up"
        )


def check_finite(images: Float[Tensor, "n c h w"], what: str) -> None:
    """Raise :class:`DataError` naming the first image that holds NaN or infinity."""
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise DataError(f"{what}: image {first} holds NaN or infinity; leave it out or rebuild it before scoring")


def check_unit(images: Float[Tensor, "n c h w"], what: str) -> None:
    """Raise :class:`DataError` when images are not finite or leave [0, 1] by more than :data:`ROUNDING`."""
    check_finite(images, what)
    if images.numel() and (images.min() < -ROUNDING or images.max() > 1 + ROUNDING):
        raise DataError(
            f"{what} lie in [{images.min():.3g}, {images.max():.3g}], expected [0, 1]; "
            "undo the normalisation first (Normalisation.invert)"
        )
