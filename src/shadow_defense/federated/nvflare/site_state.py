"""Where a site keeps what its clients remember: the site's own choice, never that of whoever wrote the job."""

from __future__ import annotations

import os
from pathlib import Path

from shadow_defense.errors import RunError

STATE_FOLDER = "SHADOW_DEFENSE_STATE"
"""The environment variable that the site gives its NVFlare client."""


def state_root() -> Path:
    """The folder that the site gave for states. Raises :class:`RunError` where it gave none."""
    given = os.environ.get(STATE_FOLDER)
    if not given:
        raise RunError(
            f"this site has no folder for its state: start the NVFlare client with the environment variable "
            f"{STATE_FOLDER}=FOLDER"
        )
    return Path(given).expanduser().resolve()
