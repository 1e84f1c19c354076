"""The folder of a plan: it holds one kind of results, of one configuration, and nothing that is anybody else's."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from shadow_defense.config import read_values
from shadow_defense.errors import RunError
from shadow_defense.files import is_empty, write_text


def open_folder(folder: Path, kind: str, settings: Mapping[str, Any], *, may_change: bool = False) -> Path:
    """Make the folder, or go on in one of the same plan; returns the file with its settings.

    Args:
        kind: of the plan; ``<kind>.yaml`` in the folder holds the settings.
        may_change: other settings than before use the results that are there; else they are refused.

    Raises:
        RunError: when it is a file, cannot be written, holds something else, or another configuration.
    """
    check_folder(folder, kind)
    written = folder / f"{kind}.yaml"
    if written.exists() and not may_change and _deciding(read_values(str(written))) != _deciding(settings):
        raise RunError(
            f"{folder} holds a {kind} of another configuration: choose another folder with --out, or delete it"
        )
    write_text(written, yaml.safe_dump(dict(settings), sort_keys=False))
    return written


def check_folder(folder: Path, kind: str) -> None:
    """Raise :class:`RunError` for a folder that the plan cannot be, before anything is computed."""
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: choose another folder with --out")
        if any(above.exists() and not above.is_dir() for above in folder.absolute().parents):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if folder.is_dir() and not is_empty(folder) and not (folder / f"{kind}.yaml").exists():
            raise RunError(f"{folder} exists and holds files that no {kind} wrote: choose another folder with --out")
    except OSError as error:
        raise RunError(f"{folder} cannot be used: {error.strerror}; choose another folder with --out") from error


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in ("title", "workers")}
