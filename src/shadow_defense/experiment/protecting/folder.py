"""The folder that is written: what it was asked for, and the names of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadow_defense.errors import RunError
from shadow_defense.files import is_empty, read_object, write_json

ASKED, CONSTANTS, CERTIFICATE, PAGE = "protection.json", "texture.safetensors", "certificate.json", "certificate.html"
GENERATOR = "generator.safetensors"
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
