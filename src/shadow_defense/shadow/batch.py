"""A user's batch as the nine steps read it, and protected images as the user gave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError
from shadow_defense.shadow.sample_ids import distinct, sample_keys
from shadow_defense.shadow.targets import as_labels
from shadow_defense.shadow.thumbnails import differ

Images = TypeVar("Images", Tensor, np.ndarray)

MARGIN = 0.25
"""How far beyond [0, 1] an image may reach once its normalisation is undone: resampling and noise overshoot."""


@dataclass(frozen=True)
class ShadowBatch:
    """Images and labels of one training step, with every sample once beside them.

    Attributes:
        images: the whole batch in single precision; a sample may be in it more than once.
        labels: as :func:`as_labels` gives them.
        samples: the m distinct ids.
        firsts, places: see :func:`distinct`.
    """

    images: Float[Tensor, "n c h w"]
    labels: Tensor
    samples: tuple[str, ...]
    firsts: Int64[Tensor, " m"]
    places: Int64[Tensor, " n"]


def as_normalisation(mean: Any, std: Any) -> Normalisation:
    """Mean and std as given (a number, a sequence, a tensor or an array) as a :class:`Normalisation`.

    Raises:
        DataError: for what is no number, and for a std that is not above 0.
    """
    try:
        means, stds = (tuple(np.asarray(each, dtype=float).reshape(-1).tolist()) for each in (mean, std))
    except (TypeError, ValueError) as error:
        raise DataError(f"mean {mean!r} and std {std!r} are no numbers: give one for each channel") from error
    if not means or not stds or not np.isfinite((*means, *stds)).all() or min(stds) <= 0:
        raise DataError(f"mean {list(means)} and std {list(stds)}: expected finite numbers, and std above 0")
    return Normalisation(means, stds)


def check_round(round: object, rounds: object) -> None:
    """Raise :class:`DataError` for a round that is none of the rounds."""
    if not (isinstance(round, Integral) and isinstance(rounds, Integral)):
        raise DataError(f"round {round!r} of {rounds!r}: expected whole numbers")
    if not 0 <= int(round) < int(rounds):
        raise DataError(f"round {round} of {rounds}: expected 0 <= round < rounds (rounds count from 0)")


def read_images(images: Any, sample_ids: Sequence[str], normalisation: Normalisation) -> Float[Tensor, "n c h w"]:
    """``images`` as a plain tensor in single precision, on the device where they are.

    Raises:
        DataError: for another shape or type, NaN or infinity (naming the sample), a range that ``normalisation``
            cannot give, or another number of ids.
    """
    if not isinstance(images, Tensor | np.ndarray) or (
        isinstance(images, np.ndarray) and images.dtype.kind not in "fiub"
    ):
        what = f"an array of {images.dtype}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
        raise DataError(f"images are {what}: expected a tensor or an array of floats")
    # A copy of an array: torch takes no reversed ones, and warns of those that are read-only.
    plain = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images).detach()
    if plain.layout != torch.strided or plain.is_quantized:
        raise DataError("images are sparse or quantised: give plain tensors (to_dense, dequantize)")
    plain = plain.as_subclass(Tensor)
    if plain.dim() != 4 or len(plain) == 0:
        raise DataError(f"images of shape {tuple(plain.shape)}: expected (n, channels, height, width) with n >= 1")
    if not plain.is_floating_point():
        raise DataError(f"images of type {plain.dtype}: expected floats, normalised with the guard's mean and std")
    if plain.is_meta:
        raise DataError("images on the device 'meta', where there are no values: give tensors of a real device")
    if len(sample_ids) != len(plain):
        raise DataError(f"{len(plain)} images with {len(sample_ids)} sample ids: give one of each")
    finite = torch.isfinite(plain).flatten(1).all(1)
    if not finite.all():
        sample = sample_ids[int((~finite).nonzero()[0])]
        raise DataError(f"image '{sample}' holds NaN or infinity: remove or correct it before training")
    for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in (1, plain.shape[1]):
            raise DataError(f"{name} has {len(values)} channels but the images {plain.shape[1]}: give one for each")
    plain = plain.float()
    unit = normalisation.invert(plain)
    if float(unit.min()) < -MARGIN or float(unit.max()) > 1 + MARGIN:
        black, white = normalisation.bounds(plain)
        raise DataError(
            f"images of {float(plain.min()):.4g} to {float(plain.max()):.4g} are not normalised with the guard's mean "
            f"{list(normalisation.mean)} and std {list(normalisation.std)}, which give {float(black.min()):.4g} to "
            f"{float(white.max()):.4g}: give ShadowGuard(mean=..., std=...) those of your transform of [0, 1] images"
        )
    return plain


def check_repeats(images: Float[Tensor, "n c h w"], keys: Sequence[str], normalisation: Normalisation) -> None:
    """Raise :class:`DataError`, naming the sample, where one id stands for two different images."""
    firsts, places = distinct(keys)
    if len(firsts) == len(keys):
        return
    unit = normalisation.invert(images)
    others = differ(unit, unit[firsts[places]])
    if others.any():
        raise DataError(
            f"two different images of one batch have the id '{keys[int(others.nonzero()[0])]}': give every image a "
            "name of its own, and every augmented view of it, too"
        )


def read_batch(
    images: Any, labels: Any, sample_ids: Any, normalisation: Normalisation, device: torch.device
) -> ShadowBatch:
    """The batch on ``device``, checked whole before anything is computed from it.

    Raises:
        DataError: what :func:`read_images`, :func:`as_labels` and :func:`sample_keys` raise, and for two different
            images under one id.
    """
    keys = sample_keys(sample_ids)
    plain = read_images(images, keys, normalisation).to(device)
    targets = as_labels(labels, len(plain)).to(device)
    firsts, places = distinct(keys)
    check_repeats(plain, keys, normalisation)
    return ShadowBatch(plain, targets, tuple(keys[first] for first in firsts), firsts.to(device), places.to(device))


def add_noise(images: Images, noise: Float[Tensor, "n c h w"]) -> Images:
    """``images + noise`` in the type, the precision and on the device of ``images``."""
    if isinstance(images, np.ndarray):
        return images + noise.cpu().numpy().astype(images.dtype)
    return images.detach() + noise.to(images)
