"""Which protected image is of which clean one; and an earlier protection of the same images."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.dataset import ImageSet
from shadow_defense.data.images import as_bytes
from shadow_defense.errors import DataError, shown
from shadow_defense.experiment.protecting.folder import read_finished
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.layouts import ArchiveLayout, Layout, read_layout, target_of
from shadow_defense.protection.building import freeze
from shadow_defense.protection.constants import hash_of
from shadow_defense.protection.frozen import FrozenProtection


def read_protected(path: Path, seed: int) -> Layout:
    """The data set in a folder that was protected: its one .npz or CSV, else its pictures.

    Raises:
        DataError: where there is none, or more than one.
    """
    found = sorted([*path.glob("*.npz"), *path.glob("*.csv")]) if path.is_dir() else [path]
    if len(found) > 1:
        names = ", ".join(each.name for each in found[:3])
        raise DataError(f"{shown(path)} holds {shown(names)}: expected one data set; give the file that is meant")
    return read_layout(str(found[0] if found else path), None, None, seed)


def paired(protected: Layout, clean: ImageSet) -> UInt8[Tensor, "n c h w"]:
    """The protected training images in the order of the clean ones: by name, in archives by place.

    Raises:
        DataError: where they cannot be those of the clean ones: another size, count, name or label.
    """
    train = protected.parts.train
    if train.images.shape[1:] != clean.images.shape[1:]:
        raise DataError(
            f"protected images are {tuple(train.images.shape[1:])} (channels, height, width) and the clean ones "
            f"{tuple(clean.images.shape[1:])}: give the --truth that they were made of"
        )
    if isinstance(protected, ArchiveLayout):
        if len(train) != len(clean):
            raise DataError(
                f"{len(train)} protected images and {len(clean)} clean ones: give the --truth that they were made of"
            )
        found = train
    else:
        places = {target_of(name): place for place, name in enumerate(train.sample_ids)}
        wanted = [target_of(name) for name in clean.sample_ids]
        missing = next((name for name in wanted if name not in places), None)
        if missing is not None or len(wanted) != len(places):
            told = (
                f"no protected image '{shown(missing)}'" if missing else f"{len(places)} protected, {len(wanted)} clean"
            )
            raise DataError(f"{told}: give the --truth that they were made of")
        found = train.subset([places[name] for name in wanted])
    other = (found.labels != clean.labels).nonzero()
    if len(other):
        raise DataError(
            f"'{shown(clean.sample_ids[int(other[0])])}' has another label than its protected image: give the --truth "
            "that they were made of"
        )
    return found.images


COMPARED = 16
"""Images by which a site knows its own draws."""


def read_earlier(folder: Path, private: ImageSet, public: PublicImages, secret: int) -> FrozenProtection:
    """The protection of a folder, whose draws the site makes again from its secret.

    Raises:
        RunError: for no such folder, or a damaged one.
        DataError: for one of other images, of other public ones, or of another site.
    """
    asked, settings, constants, generator = read_finished(folder, "--trained-on")
    frozen = freeze(settings, constants, public.images, secret, generator)
    if asked["public"] != hash_of(public.images, public.labels):
        raise DataError(f"{folder} was protected with other public images: protect both with the same ones")
    written = paired(read_protected(folder, settings.seed), private)[:COMPARED]
    made_again = as_bytes(frozen.trained_on(private.images[:COMPARED]))
    if (written.int() - made_again.int()).abs().max() > 1:
        raise DataError(f"{folder} was protected at another site, whose secret is not here: its draws are not known")
    return frozen
