"""The folder of a plan: it holds one kind of results, of one configuration, and nothing that is anybody else's.

Nothing here needs torch: what is no such folder is said at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from shadow_defense.config import read_values
from shadow_defense.errors import RunError, shown
from shadow_defense.files import LOCK, is_empty, write_text

Values = Mapping[str, object]

CONFIG = "config.yaml"
"""In a run directory: what decides its numbers."""

DECIDING_NOTHING = ("title", "workers")
"""Settings that may differ in one folder: no number depends on them."""


def open_folder(
    folder: Path,
    kind: str,
    settings: Values,
    *,
    earlier: Values | None = None,
    file: str | None = None,
    may_change: bool = False,
    hint: str = "delete it",
) -> Path:
    """Make the folder, or go on in one of the same plan; returns the file with its settings.

    Args:
        kind: of the plan.
        earlier: the settings that the folder holds; None: as they stand in its file.
        file: with the settings; None: ``<kind>.yaml``.
        may_change: other settings than before use the results that are there; else they are refused. Where there are
            no results yet, they may always change: a first command that was mistyped does not block the right one.
        hint: how a folder with other settings is taken all the same.

    Raises:
        RunError: when it is a file, cannot be written, holds something else, or another configuration.
    """
    written = folder / (file or f"{kind}.yaml")
    check_folder(folder, kind, written.name)
    if written.exists() and not may_change:
        change = _first_change(read_values(str(written)) if earlier is None else earlier, settings)
        if change is not None and holds_results(folder, written.name):
            raise RunError(f"{folder} was begun with another {change}: choose another folder with --out, or {hint}")
    write_text(written, yaml.safe_dump(dict(settings), sort_keys=False))
    return written


def holds_results(folder: Path, *besides: str) -> bool:
    """Whether a plan's folder holds more than what is written first: ``besides``, and the lock."""
    return any(path.is_file() and path.name not in (*besides, LOCK) for path in folder.rglob("*"))


def check_folder(folder: Path, kind: str, file: str) -> None:
    """Raise :class:`RunError` for a folder that the plan cannot be, before anything is computed."""
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: choose another folder with --out")
        if any(above.exists() and not above.is_dir() for above in folder.absolute().parents):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if folder.is_dir() and not is_empty(folder) and not (folder / file).exists():
            raise RunError(f"{folder} exists and holds files that no {kind} wrote: choose another folder with --out")
    except OSError as error:
        raise RunError(f"{folder} cannot be used: {error.strerror}; choose another folder with --out") from error


def config_of(folder: Path) -> Path:
    """The configuration's file in a run directory. Raises :class:`RunError` where there is none."""
    written = folder / CONFIG
    if not written.is_file():
        raise RunError(f"{folder} is no run directory (it has no {CONFIG}): give one, or --config to create it")
    return written


def _first_change(earlier: Values, new: Values, above: str = "") -> str | None:
    """The first setting, by name, that decides numbers and is another one."""
    for key in sorted({*earlier, *new} - set(() if above else DECIDING_NOTHING)):
        old_value, new_value = earlier.get(key), new.get(key)
        if old_value != new_value:
            if isinstance(old_value, Mapping) and isinstance(new_value, Mapping):
                return _first_change(old_value, new_value, f"{above}{key}.")
            return f"{above}{key} ({shown(repr(old_value), 60)}, not {shown(repr(new_value), 60)})"
    return None
