"""What the attacker may know: public images, checked to hold none of the private ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.duplicates import digests
from shadow_defense.data.images import prepare
from shadow_defense.data.public import read_public_images
from shadow_defense.data.set_aside import set_aside
from shadow_defense.data.source_at import source_at
from shadow_defense.devices import DeviceName, resolved_device
from shadow_defense.errors import DataError, shown
from shadow_defense.metrics.psnr import decibels
from shadow_defense.protection.whitening import LEAST_IMAGES
from shadow_defense.seeds import seed_for

ALIKE = 40.0
"""dB between thumbnails from which on two images count as one: the same file saved anew, or at another size."""

THUMBNAIL = 32


@dataclass(frozen=True)
class PublicImages:
    """Public images in [0, 1] of the private ones' shape, with labels, patients and names where these are known."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"] | None
    classes: int
    groups: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.images) < LEAST_IMAGES:
            raise DataError(
                f"{len(self.images)} public images: expected at least {LEAST_IMAGES}; give more, or set more aside"
            )

    @classmethod
    def of(cls, images: ImageSet, classes: int) -> PublicImages:
        """Images with their labels."""
        return cls(images.images, images.labels, classes, images.groups, images.sample_ids)

    def knowledge(self, device: DeviceName) -> Knowledge:
        """As removers take it, whose networks are trained there.

        Raises:
            ConfigError: where there is no such device.
        """
        labels = torch.zeros(len(self.images)).long() if self.labels is None else self.labels
        return Knowledge(self.images.float() / 255, labels, self.classes, self.groups, resolved_device(device))


def read_public(where: str, like: ImageSet, seed: int, grey_range: tuple[float, float] | None = None) -> PublicImages:
    """Public images of anything that the project reads, with labels or without, in the shape of ``like``.

    Raises:
        DataError: where there are none, or too few.
    """
    path = Path(where)
    height, width = like.image_size
    if height != width:
        raise DataError(
            f"the images have {height} x {width} pixels: expected squares, to which public ones can be brought; give "
            "--image-size"
        )
    found = _with_labels(path, height, like.channels, grey_range)
    if found is not None:
        return PublicImages.of(found.train if found.public is None else found.public, len(found.class_names))
    # A phantom of the same name as the images to protect must not draw the same ones.
    seed = seed_for(seed, "protect", "public")
    images = read_public_images(where, image_size=height, channels=like.channels, limit=None, seed=seed)
    return PublicImages(images.images, None, 1, names=images.sample_ids)


def _with_labels(path: Path, size: int, channels: int, grey_range: tuple[float, float] | None) -> Parts | None:
    """The images with their labels, or None where none are told."""
    given = {"path": path, "image_size": size, "channels": channels, "grey_range": grey_range}
    try:
        source = source_at(path)
        if source is None:
            return None
        return source.reader(**{name: value for name, value in given.items() if name in source.accepts})
    except DataError:
        if not path.is_dir():
            raise
        # Folders that are no classes; whatever cannot be read is said by who reads them without labels.
        return None


def cut_public(train: ImageSet, amount: float, classes: int, seed: int) -> tuple[list[int], PublicImages]:
    """Take images out of the training part, by patient where known: the places that stay, and the images taken.

    Those taken are spent: the attacker is granted them. An image that stands among the others too goes with neither.

    Args:
        amount: a count, or a share below 1.

    Raises:
        DataError: for an amount that leaves too few on either side.
    """
    share = amount if amount < 1 else amount / len(train)
    if not 0 < share < 1:
        raise DataError(f"--set-aside {amount:g} of {len(train)} training images: expected fewer; set less aside")
    generator = np.random.default_rng(seed_for(seed, "protect", "set aside"))
    stay, taken = set_aside(train.labels.numpy(), train.groups, share, "public", generator)
    aside = train.subset(taken)
    alone = twins(aside.images, train.images[torch.from_numpy(stay)]) < 0
    return stay.tolist(), PublicImages.of(aside.subset(alone.nonzero()[:, 0].numpy()), classes)


def refuse_private(public: PublicImages, private: ImageSet) -> None:
    """Raise :class:`DataError` where public images hold private ones, as they are or saved anew.

    The attacker would be given what it is to find, and the audit would say nothing.
    """
    twin = twins(public.images, private.images)
    both = (twin >= 0).nonzero()[:, 0]
    if len(both):
        place = int(both[0])
        name = str(place) if public.names is None else public.names[place]
        raise DataError(
            f"{len(both)} of {len(twin)} public images are among those to protect (public image '{shown(name)}' is "
            f"'{shown(private.sample_ids[int(twin[place])])}' of them): give public images of others, or --set-aside"
        )


def twins(first: UInt8[Tensor, "n c h w"], second: UInt8[Tensor, "m c h w"]) -> Int64[Tensor, " n"]:
    """For each of ``first`` its place in ``second``: equal bytes, or thumbnails within :data:`ALIKE`; -1 for none."""
    known = {digest: place for place, digest in enumerate(digests(second))}
    equal = torch.tensor([known.get(digest, -1) for digest in digests(first)])
    small, others = _thumbnails(first), _thumbnails(second)
    parts = [torch.cdist(chunk, others).min(dim=1) for chunk in small.split(512)]
    distance, nearest = torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
    alike = torch.where(decibels(distance.square() / small.shape[1]) > ALIKE, nearest, -1)
    return torch.where(equal >= 0, equal, alike)


def _thumbnails(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    square = prepare(images, None, 1).float() / 255
    side = min(THUMBNAIL, *square.shape[2:])
    return F.adaptive_avg_pool2d(square, side).flatten(1)
