"""The environment in which Flower and Ray tell nobody anything, listen to no other machine, and install nothing."""

from __future__ import annotations

import os

SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Whatever its name says: without a cluster Ray listens on the loopback interface, else on all, to whoever calls.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def be_silent() -> None:
    """Set what the user's own environment does not; both read it when they are imported, so before that."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
