"""What a batch must be before anything is computed from it, and a saved state before anything is restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError, DefenseError
from shadow_defense.generators.interface import LatentSpace


def check_batch(
    images: Tensor,
    labels: Tensor,
    sample_ids: tuple[str, ...],
    round: int,
    rounds: int,
    normalisation: Normalisation,
) -> None:
    """Raise :class:`DataError`, naming the sample where one is to blame, for a batch that cannot be protected."""
    if images.dim() != 4 or len(images) == 0:
        raise DataError(f"images of shape {tuple(images.shape)}: expected (n, channels, height, width) with n >= 1")
    if not images.is_floating_point():
        raise DataError(f"images of type {images.dtype}: expected floats, normalised with the guard's mean and std")
    if len(sample_ids) != len(images) or len(labels) != len(images):
        raise DataError(
            f"{len(images)} images with {len(labels)} labels and {len(sample_ids)} sample ids: give one of each"
        )
    if len(set(sample_ids)) != len(sample_ids):
        raise DataError("sample ids repeat within the batch: give every image a name of its own")
    finite = torch.isfinite(images).flatten(1).all(1)
    if not finite.all():
        sample = sample_ids[int((~finite).nonzero()[0])]
        raise DataError(f"image '{sample}' holds NaN or infinity: remove it or mend it before training")
    if int(labels.min()) < 0:
        raise DataError(f"label {int(labels.min())} is out of range: expected 0 or more")
    if not 0 <= round < rounds:
        raise DataError(f"round {round} of {rounds}: expected 0 <= round < rounds (rounds count from 0)")
    for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in (1, images.shape[1]):
            raise DataError(f"{name} has {len(values)} channels but the images {images.shape[1]}: give one for each")


def pack_space(space: LatentSpace) -> Tensor:
    """The name of a latent space as a tensor of UTF-8 bytes, to be saved with the codes that are of it."""
    return torch.tensor(list(space.encode()), dtype=torch.uint8)


def check_state(state: Mapping[str, Any], synthesis: Mapping[str, Tensor], space: LatentSpace) -> None:
    """Raise :class:`DefenseError` when a guard's state is of another generator or of another latent space.

    The space is told by its name: codes of z and of w often have one shape. A state without it was saved before there
    was a choice, and is of z.
    """
    shapes = {name: tensor.shape for name, tensor in synthesis.items()}
    if {name: tensor.shape for name, tensor in state.get("synthesis", {}).items()} != shapes:
        raise DefenseError("the saved state belongs to another generator: give the guard the one it was saved with")
    saved = bytes(state.get("latent_space", pack_space("z")).tolist()).decode()
    if saved != space:
        raise DefenseError(
            f"the saved state holds latent codes of {saved} but latent_space is {space}: set latent_space to {saved}, "
            "or start anew"
        )
