"""An earlier protection of the same images, on which a model was trained that leaves with the later one."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.data.dataset import ImageSet
from shadow_defense.data.images import as_bytes
from shadow_defense.errors import DataError, RunError
from shadow_defense.experiment.protecting.folder import ASKED, CONSTANTS, GENERATOR
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.pairing import paired, read_protected
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.files import read_object
from shadow_defense.generators.build import load_generator
from shadow_defense.protection.building import freeze
from shadow_defense.protection.constants import hash_of, read_constants
from shadow_defense.protection.frozen import FrozenProtection

COMPARED = 16
"""Images by which a site knows its own draws."""

ANOTHER = "give --trained-on a folder that `protect` wrote to the end"


def read_earlier(folder: Path, private: ImageSet, public: PublicImages, secret: int) -> FrozenProtection:
    """The protection of a folder, whose draws the site makes again from its secret.

    Raises:
        RunError: for no such folder, or a damaged one.
        DataError: for one of other images, of other public ones, or of another site.
    """
    asked = read_object(folder / ASKED, ANOTHER, "settings", "public")
    constants = read_constants(folder / CONSTANTS, ANOTHER)
    if constants is None:
        raise RunError(f"{folder} was not protected to the end: run the same protect again")
    made = folder / GENERATOR
    settings = ProtectSettings(**asked["settings"])
    frozen = freeze(settings, constants, public.images, secret, load_generator(made) if made.exists() else None)
    if asked["public"] != hash_of(public.images, public.labels):
        raise DataError(f"{folder} was protected with other public images: protect both with the same ones")
    written = paired(read_protected(folder, settings.seed), private)[:COMPARED]
    made_again = as_bytes(frozen.trained_on(private.images[:COMPARED]))
    if (written.int() - made_again.int()).abs().max() > 1:
        raise DataError(f"{folder} was protected at another site, whose secret is not here: its draws are not known")
    return frozen
