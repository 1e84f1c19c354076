"""The folder that is written: what it was asked for, its files, and never the site's secret."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shadow_defense.errors import RunError
from shadow_defense.experiment.protecting.material import CHOOSING
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.federated.site_folder import STATE_FOLDER, state_root
from shadow_defense.federated.site_secret import site_seed
from shadow_defense.files import atomic_path, is_empty, read_object, write_json
from shadow_defense.generators.build import load_generator
from shadow_defense.generators.interface import Generator
from shadow_defense.protection.constants import Constants, read_constants
from shadow_defense.protection.task import Task
from shadow_defense.validation import validated

ASKED, CONSTANTS, CERTIFICATE, PAGE = "protection.json", "texture.safetensors", "certificate.json", "certificate.html"
GENERATOR, TRANSFORM = "generator.safetensors", "transform.pt2"
HINT = "choose another folder with --out"


def claim(out: Path, asked: Mapping[str, Any]) -> None:
    """Take a new folder for this protection, or go on in one that was begun for the same.

    Raises:
        RunError: for a folder that holds anything else.
    """
    written = out / ASKED
    if written.exists():
        if read_object(written, HINT, *asked) != asked:
            raise RunError(f"{out} holds another protection, of other images or settings: {HINT}")
    elif not is_empty(out):
        raise RunError(f"{out} is not empty, and nothing is overwritten: {HINT}")
    else:
        write_json(written, asked)


def read_finished(folder: Path, option: str) -> tuple[Mapping[str, Any], ProtectSettings, Constants, Generator | None]:
    """What a folder was asked for, its settings at the strength that was chosen, its constants, and its decoys' maker.

    Raises:
        RunError: for a folder, which ``option`` named, that holds no protection, or none to the end, or a damaged one.
    """
    another = f"give {option} a folder that `protect` wrote to the end"
    asked = read_object(folder / ASKED, another, "settings", "private", "public", *CHOOSING)
    constants = read_constants(folder / CONSTANTS, another)
    if constants is None:
        raise RunError(f"{folder} was not protected to the end: run the same protect again")
    settings = validated(ProtectSettings, {**asked["settings"], "strength": constants.strength}, RunError, "settings")
    made = folder / GENERATOR
    return asked, settings, constants, load_generator(made) if made.exists() else None


def write_transform(out: Path, texture: Task) -> None:
    """Write the map that goes before the model at test time, unless it is there.

    As a program for any number of images that needs nothing of this package: ``torch.export.load`` reads it.
    """
    if (out / TRANSFORM).exists():
        return
    example = torch.zeros(2, *texture.whitening.shape)
    program = torch.export.export(
        texture.module(), (example,), dynamic_shapes={"images": {0: torch.export.Dim("images")}}
    )
    with atomic_path(out / TRANSFORM) as temporary:
        torch.export.save(program, temporary)


def site_secret(out: Path | None = None) -> int:
    """The seed of all draws of this site's protections, of 256 bits, kept below :func:`state_root`.

    Raises:
        RunError: where it would lie in ``out``, which others may read, or cannot be read or written.
    """
    root = state_root()
    if out is not None and root.is_relative_to(out.resolve()):
        raise RunError(f"the site's secret would lie in {out}, which it protects: set {STATE_FOLDER} to another folder")
    return site_seed(root)
