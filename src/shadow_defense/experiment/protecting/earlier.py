"""An earlier protection of the same images, on which a model was trained that leaves with the later one."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.data.dataset import ImageSet
from shadow_defense.data.images import as_bytes
from shadow_defense.errors import DataError
from shadow_defense.experiment.protecting.folder import read_finished
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.pairing import paired, read_protected
from shadow_defense.protection.building import freeze
from shadow_defense.protection.constants import hash_of
from shadow_defense.protection.frozen import FrozenProtection

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
