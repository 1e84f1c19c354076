"""Where a site keeps what never leaves it: the site's own choice."""

from __future__ import annotations

import os
from pathlib import Path

STATE_FOLDER = "SHADOW_DEFENSE_STATE"
"""The environment variable by which a site says where its states lie."""


def state_root() -> Path:
    """What ``SHADOW_DEFENSE_STATE`` names, else ``shadow-defense`` in the user's folder for states (XDG)."""
    given = os.environ.get(STATE_FOLDER)
    if given:
        return Path(given).expanduser().resolve()
    users = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(users).expanduser().resolve() / "shadow-defense"
