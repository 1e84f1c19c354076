"""What a protection begins with: the data set, what of it is protected, and what the attacker may know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import ConfigError, DataError
from shadow_defense.experiment.protecting.knowledge import PublicImages, cut_public, read_public, refuse_private
from shadow_defense.experiment.protecting.layouts import Layout, read_layout
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.metrics.limit import Limit
from shadow_defense.seeds import named_generator

LEAST_PRIVATE = 20
"""Images below which an interval over them says next to nothing."""


@dataclass(frozen=True)
class Request:
    """What is asked of the command.

    Attributes:
        images: a path, or a source that needs no file.
        public: public images likewise; None where they are set aside, or where the data set marks its own.
        aside: a count of training images, or a share below 1, that become public.
        targets: the most that may be left, which chooses the strength; none: the settings' own.
        limit: so many training images are protected at most.
        grey_range: the grey values of files that become black and white.
        generator: of decoys, in place of public images.
        model: whose directions are spared (:func:`~.networks.read_networks`).
        trained_on: the earlier protected folder that it was trained on.
    """

    images: str
    settings: ProtectSettings
    public: str | None = None
    aside: float | None = None
    targets: tuple[Limit, ...] = ()
    limit: int | None = None
    image_size: int | None = None
    grey_range: tuple[float, float] | None = None
    generator: Path | None = None
    model: str | None = None
    trained_on: Path | None = None


CHOOSING = ("aside", "limit", "image_size", "grey_range")
"""What of a request decides which images are protected; it lies in the folder, for an audit to find them again."""


@dataclass(frozen=True)
class Material:
    """The training images to protect, and what the attacker may have.

    Attributes:
        spent: training images that were set aside.
        whole: training images that would be protected without a limit.
    """

    private: ImageSet
    public: PublicImages
    spent: int
    whole: int


def read_material(request: Request) -> tuple[Layout, list[int], Material]:
    """The data set, the places of its training images that are protected, and those images with public ones.

    Raises:
        ConfigError: where not one of the ways to public images is given.
        DataError: when images cannot be used, are too few, or stand on both sides.
    """
    layout = read_layout(request.images, request.image_size, request.grey_range, request.settings.seed)
    train, marked, seed = layout.parts.train, layout.parts.public, request.settings.seed
    classes = len(layout.parts.class_names)
    if sum(each is not None for each in (request.public, request.aside, marked)) != 1:
        given = "; the lines of split public are its public images" if marked is not None else ""
        raise ConfigError(
            f"protect needs to know what the attacker may know: give either --public or --set-aside{given}"
        )
    kept, spent = list(range(len(train))), 0
    if request.aside is not None:
        kept, public = cut_public(train, request.aside, classes, seed)
        spent = len(train) - len(kept)
    elif marked is not None:
        public = PublicImages.of(marked, classes)
    else:
        assert request.public is not None
        public = read_public(request.public, train, seed, request.grey_range)
    whole = len(kept)
    if request.limit is not None and request.limit < len(kept):
        order = torch.randperm(len(kept), generator=named_generator(seed, "protect", "limit"))
        kept = [kept[place] for place in order[: request.limit].sort().values.tolist()]
    return layout, kept, checked(Material(train.subset(kept), public, spent, whole))


def checked(material: Material) -> Material:
    """The material as it is.

    Raises:
        DataError: when there are too few images for an interval, or private ones among the public.
    """
    if len(material.private) < LEAST_PRIVATE:
        raise DataError(
            f"{len(material.private)} images to protect: expected at least {LEAST_PRIVATE} to put an interval round "
            "what was measured; give more, or set less aside"
        )
    refuse_private(material.public, material.private)
    return material
