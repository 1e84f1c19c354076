"""Where a site keeps its secret: the site's own choice, and never the folder that is protected."""

from __future__ import annotations

import os
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.federated.site_secret import site_seed

STATE_FOLDER = "SHADOW_DEFENSE_STATE"
"""The environment variable by which a site says where its states lie."""


def site_secret(out: Path | None = None) -> int:
    """The seed of all draws of this site's protections, of 256 bits, kept below :func:`state_root`.

    Raises:
        RunError: where it would lie in ``out``, which others may read, or cannot be read or written.
    """
    root = state_root()
    if out is not None and root.is_relative_to(out.resolve()):
        raise RunError(f"the site's secret would lie in {out}, which it protects: set {STATE_FOLDER} to another folder")
    return site_seed(root)


def state_root() -> Path:
    """What ``SHADOW_DEFENSE_STATE`` names, else ``shadow-defense`` in the user's folder for states (XDG)."""
    given = os.environ.get(STATE_FOLDER)
    if given:
        return Path(given).expanduser().resolve()
    users = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(users).expanduser().resolve() / "shadow-defense"
