"""Where a site keeps what its clients remember: the site's own choice, never that of whoever wrote the job."""

from __future__ import annotations

import math
import os
from pathlib import Path

from shadow_defense.errors import RunError

STATE_FOLDER = "SHADOW_DEFENSE_STATE"
"""The environment variable that the site gives its NVFlare client."""


BUDGET = "SHADOW_DEFENSE_EPSILON_BUDGET"
"""The environment variable with the epsilon that all runs of the site may spend together."""


def epsilon_budget() -> float | None:
    """What the site lets all its runs spend; None: no end. Raises :class:`RunError` for what is no number above 0."""
    given = os.environ.get(BUDGET)
    if given is None:
        return None
    try:
        most = float(given)
    except ValueError:
        most = math.nan
    # Not infinity either: it would let everything leave and read as if there were an end.
    if not 0 < most < math.inf:
        raise RunError(f"{BUDGET}={given}: expected a number above 0, such as 8.0; until then nothing leaves")
    return most


def state_root() -> Path:
    """The folder that the site gave for states. Raises :class:`RunError` where it gave none."""
    given = os.environ.get(STATE_FOLDER)
    if not given:
        raise RunError(
            f"this site has no folder for its state: start the NVFlare client with the environment variable "
            f"{STATE_FOLDER}=FOLDER"
        )
    return Path(given).expanduser().resolve()
