"""What every image source ends in: sets of images, clients, and the federated data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from shadow_defense.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, stable sample ids and, where known, patients and lesion masks.

    Attributes:
        images: (n, channels, height, width), 0 to 255; kept as bytes because a real data set at 224 px would
            not fit in memory as floats.
        labels: (n,), 0 to classes - 1.
        sample_ids: n unique names that stay the same when the set is split, shuffled or read again.
        groups: n patient names (what must not be torn between clients), or None where nothing is known.
        masks: (n, height, width), true where the lesion is, or None where no ground truth exists.

    Raises:
        DataError: when lengths differ or sample ids repeat.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    sample_ids: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    masks: Bool[Tensor, "n h w"] | None = None

    def __post_init__(self) -> None:
        count = len(self.sample_ids)
        lengths = {"images": len(self.images), "labels": len(self.labels)}
        if self.groups is not None:
            lengths["groups"] = len(self.groups)
        if self.masks is not None:
            lengths["masks"] = len(self.masks)
        for name, length in lengths.items():
            if length != count:
                raise DataError(f"{count} sample ids but {length} {name}: give one of each per image")
        if len(set(self.sample_ids)) != count:
            raise DataError("sample ids repeat: give every image a name of its own")

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at ``indices``, in that order."""
        index = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return ImageSet(
            images=self.images[index],
            labels=self.labels[index],
            sample_ids=tuple(self.sample_ids[i] for i in index.tolist()),
            groups=None if self.groups is None else tuple(self.groups[i] for i in index.tolist()),
            masks=None if self.masks is None else self.masks[index],
        )

    def unit_images(self) -> Float[Tensor, "n c h w"]:
        """The images as floats in [0, 1]."""
        return self.images.float() / 255


def concatenated(sets: Sequence[ImageSet], prefix: str = "") -> ImageSet:
    """All ``sets`` in a row, with ``prefix`` before each sample id; at least one set.

    Patients and masks are known where all sets know them.
    """
    groups = [images.groups for images in sets if images.groups is not None]
    masks = [images.masks for images in sets if images.masks is not None]
    return ImageSet(
        images=torch.cat([images.images for images in sets]),
        labels=torch.cat([images.labels for images in sets]),
        sample_ids=tuple(prefix + name for images in sets for name in images.sample_ids),
        groups=tuple(chain.from_iterable(groups)) if len(groups) == len(sets) else None,
        masks=torch.cat(masks) if len(masks) == len(sets) else None,
    )


def no_images() -> ImageSet:
    """A set without images, for a defense that needs none."""
    return ImageSet(torch.empty(0, 1, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), ())


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of [0, 1] images, and the way there and back.

    >>> Normalisation((0.5,), (0.25,)).apply(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def none(cls, channels: int) -> Normalisation:
        """That leaves images as they are."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1)
        return like.new_tensor(self.mean).view(shape), like.new_tensor(self.std).view(shape)

    def apply(self, unit: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """``(unit - mean) / std`` for images in [0, 1]."""
        mean, std = self._columns(unit)
        return (unit - mean) / std

    def invert(self, normalised: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """``normalised * std + mean``: back to [0, 1], without clamping."""
        mean, std = self._columns(normalised)
        return normalised * std + mean

    def bounds(self, like: Tensor) -> tuple[Float[Tensor, "1 c 1 1"], Float[Tensor, "1 c 1 1"]]:
        """The values that 0 and 1 have after normalisation: the box in which every real image lies."""
        mean, std = self._columns(like)
        return -mean / std, (1 - mean) / std


def measure_normalisation(images: ImageSet) -> Normalisation:
    """Per-channel mean and standard deviation over all pixels, of images scaled to [0, 1].

    A constant channel gets a standard deviation of 1, so that normalising it stays finite.
    """
    # In whole numbers: sums of floats differ in their last digit with the number of threads, and everything depends on
    # this. In chunks: a wide copy of a large set would not fit in memory.
    total = torch.zeros(images.channels, dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in images.images.split(256):
        wide = chunk.long()
        total += wide.sum(dim=(0, 2, 3))
        squares += wide.square().sum(dim=(0, 2, 3))
    count = len(images) * images.image_size[0] * images.image_size[1]
    mean = tuple(each / (255 * count) for each in total.tolist())
    deviations = (
        math.sqrt(count * square - each * each) / (255 * count)
        for each, square in zip(total.tolist(), squares.tolist(), strict=True)
    )
    return Normalisation(mean, tuple(1.0 if deviation < 1e-6 else deviation for deviation in deviations))


def measure_contrast(images: ImageSet, normalisation: Normalisation) -> float:
    """``sqrt(mean x^2)`` over all pixels x of normalised images: 1 of those that the normalisation was measured on."""
    own = measure_normalisation(images)
    measured = zip(own.mean, own.std, normalisation.mean, normalisation.std, strict=True)
    squares = [((mean - centre) ** 2 + deviation**2) / unit**2 for mean, deviation, centre, unit in measured]
    return math.sqrt(sum(squares) / len(squares))


@dataclass(frozen=True)
class Parts:
    """What a source gives before it is split into clients.

    Attributes:
        train: never empty.
        validation, test: None where the source has no such part; it is then cut from the training images.
        public: images that the source itself marks as public, for the shadow generator; may be None.
        clients: one client name per training image where the source names them, else None.
        notes: one line for each thing that happened to the images while they were read.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None
    class_names: tuple[str, ...]
    public: ImageSet | None = None
    clients: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClientData:
    """One client's own images and the batch size it trains with."""

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    batch_size: int


@dataclass(frozen=True)
class FederatedDataset:
    """The data of a federation: clients, a common public set, and what all must agree on.

    Attributes:
        clients: at least one, each with at least one training image.
        public: images that no client holds: the shadow generator is pre-trained on them.
        test: all clients' test images together.
        normalisation: measured on ``public``, since the clients' own statistics are private.
        notes: one line for each thing that happened to the images and that the settings do not say.
    """

    name: str
    clients: tuple[ClientData, ...]
    public: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    normalisation: Normalisation
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.test.channels

    @property
    def image_size(self) -> tuple[int, int]:
        return self.test.image_size

    @property
    def classes(self) -> int:
        return len(self.class_names)


def check_labels(labels: np.ndarray, classes: int, origin: str) -> None:
    """Raise :class:`DataError` when a label lies outside 0 to ``classes`` - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{origin}: label {labels[wrong[0]]} of image {wrong[0]} is out of range: "
            f"expected 0 to {classes - 1}; correct the label or the list of classes"
        )
