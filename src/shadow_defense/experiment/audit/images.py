"""Images that the command line of an audit names: the client's own, public ones with and without labels, a gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.dataset import ImageSet, Normalisation, Parts, measure_contrast, measure_normalisation
from shadow_defense.data.dicom_image import DICOM_SUFFIX
from shadow_defense.data.duplicates import digests
from shadow_defense.data.image_folder import read_image_folder
from shadow_defense.data.images import IMAGE_SUFFIXES, decode_file
from shadow_defense.data.manifest import read_manifest
from shadow_defense.data.npz import read_npz
from shadow_defense.data.public import read_public_images
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.sources import SOURCES, read_source
from shadow_defense.errors import ConfigError, DataError
from shadow_defense.experiment.audit.case import Gallery

Images = UInt8[Tensor, "n c h w"]


@dataclass(frozen=True)
class ModelInput:
    """What the audited model takes.

    Attributes:
        side: of the images, in pixels.
        classes: labels are 0 to classes - 1.
        class_names: in label order; None: in the alphabetical order of the sub-folders or the manifest's names.
    """

    channels: int
    side: int
    classes: int
    class_names: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return self.channels, self.side, self.side

    def images(self, where: str) -> Images:
        """One image file, or all that :func:`read_public_images` reads. Raises :class:`DataError`."""
        path = Path(where)
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            return decode_file(path, self.side, self.channels)
        return read_public_images(where, image_size=self.side, channels=self.channels, limit=None, seed=0).images

    def labelled_images(self, where: str) -> ImageSet:
        """The public images of a folder with a sub-folder a class, an .npz, a manifest (.csv) or a named source.

        Those of the part that is marked public, else those for training.

        Raises:
            DataError: naming what is missing or unreadable, or the classes that the model does not have.
        """
        path = Path(where)
        parts = self._parts(where, path)
        found = len(parts.class_names)
        # Numbers in a file are labels, with gaps or without; names are numbered here, and with gaps wrongly.
        named = path.is_dir() or any(not name.isdecimal() for name in parts.class_names)
        if found > self.classes or (named and found < self.classes):
            names = ", ".join(parts.class_names[:5])
            raise DataError(
                f"{where} has {found} classes ({names}{', ...' if found > 5 else ''}) and the model {self.classes}: "
                "name the model's in label order, as in --set data.classes=[a,b]"
            )
        return parts.train if parts.public is None else parts.public

    def _parts(self, where: str, path: Path) -> Parts:
        size, channels, names = self.side, self.channels, self.class_names
        if where in SOURCES and not path.exists():
            parts = read_source(DataSettings(source=where, image_size=size, channels=channels), 0)
            if names is not None and parts.class_names != names:
                raise DataError(
                    f"the classes of source '{where}' are {', '.join(parts.class_names)} in label order and the "
                    f"model's {', '.join(names)}: give a folder with a sub-folder a class"
                )
            return parts
        if path.is_dir():
            suffixes = (*IMAGE_SUFFIXES, DICOM_SUFFIX)
            return read_image_folder(path=path, image_size=size, channels=channels, classes=names, suffixes=suffixes)
        if path.suffix == ".npz" and path.is_file():
            return read_npz(path=path, image_size=size, channels=channels, classes=names)
        if path.suffix == ".csv" and path.is_file():
            return read_manifest(path=path, image_size=size, channels=channels, classes=names)
        raise DataError(
            f"no labelled images at '{where}': give a folder with a sub-folder a class, an .npz in the MedMNIST "
            "layout, or a .csv with the columns path,label"
        )


def without_own(images: Images, own: UInt8[Tensor, "m c h w"] | None, flag: str) -> list[int]:
    """The places of the images that are not, byte for byte, the client's: an attacker who has those knows the answer.

    Raises:
        ConfigError: where none is left of what ``flag`` gave.
    """
    known = set() if own is None else set(digests(own))
    others = [index for index, digest in enumerate(digests(images)) if digest not in known]
    if not others:
        raise ConfigError(f"{flag} holds nothing but the images of --truth: add images of others")
    return others


def gallery_of(images: Images, own: UInt8[Tensor, "m c h w"] | None) -> Gallery:
    """The gallery without the client's own images: those are known exactly."""
    if own is None:
        raise ConfigError("--gallery asks whether the client's own images are found among others: give --truth too")
    return Gallery(own.float() / 255, images[without_own(images, own, "--gallery")].float() / 255)


def normalisation_of(settings: DataSettings, public: Images | None, channels: int) -> Normalisation:
    """As configured, else measured on the public images. Raises :class:`ConfigError` where neither is there."""
    mean, std = settings.mean, settings.std
    if mean is not None and std is not None:
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ConfigError(
                f"data.mean {list(mean)} and data.std {list(std)}: expected {channels} numbers each, those of std "
                "above 0"
            )
        return Normalisation(mean, std)
    if public is None or len(public) < 2:
        raise ConfigError(
            "how images are normalised is not known: give --set data.mean=[0.5] --set data.std=[0.25], one number a "
            "channel, or the public images that it was measured on as --template or --public FOLDER"
        )
    return measure_normalisation(_unlabelled(public))


def usual_contrast_of(public: Images | None, normalisation: Normalisation) -> float | None:
    """Of public images; None where there are none, or a single one, which may be a mean: less strong than they are."""
    return None if public is None or len(public) < 2 else measure_contrast(_unlabelled(public), normalisation)


def _unlabelled(images: Images) -> ImageSet:
    """Images of which no labels are known: all have the label 0."""
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), tuple(map(str, range(len(images)))))
