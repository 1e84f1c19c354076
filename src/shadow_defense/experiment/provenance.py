"""What a number was computed with: the versions of libraries, and how much memory."""

from __future__ import annotations

import platform
import re
import resource
from functools import cache
from importlib import metadata
from pathlib import Path

import shadow_defense

PACKAGES = ("torch", "numpy", "monai", "torchmetrics", "scikit-image")


def versions() -> dict[str, str]:
    """The versions of this software, of Python and of the libraries that decide numbers."""
    return {"shadow-defense": shadow_defense.__version__, "python": platform.python_version(), **versions_of_packages()}


@cache
def versions_of_packages() -> dict[str, str]:
    """The versions of the libraries that decide numbers."""
    return {package: metadata.version(package) for package in PACKAGES}


def peak_megabytes() -> float:
    """The most memory that this process has held, of its own.

    Linux counts in ``ru_maxrss`` what the parent had before the program was replaced.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    # Bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
