"""Which folders are run directories, seen without opening one."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.errors import RunError

CONFIG = "config.yaml"
"""In a run directory: what decides its numbers."""


def config_of(folder: Path) -> Path:
    """The configuration's file in a run directory. Raises :class:`RunError` where there is none."""
    written = folder / CONFIG
    if not written.is_file():
        raise RunError(f"{folder} is no run directory (it has no {CONFIG}): give one, or --config to create it")
    return written
