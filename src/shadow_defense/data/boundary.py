"""Where data from outside comes in: a plain file within limits, and whatever a library raises in one line."""

from __future__ import annotations

import stat
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from shadow_defense.errors import DataError, ShadowDefenseError, shown

# A mammogram has 28 million pixels. Above, a file of some kilobytes could ask for more memory than there is.
IMAGE_PIXELS = 32_000_000
IMAGE_BYTES = 256 * 2**20
LARGE_PIXELS = 4_000_000
# The largest public sets of medical images have fewer than 400,000.
IMAGES = 500_000
CLASSES = 1000

_turn = threading.Lock()


@contextmanager
def reading(what: str, path: Path, hint: str) -> Iterator[None]:
    """Turn whatever the reading of ``path`` raises into one :class:`DataError`; errors of this project pass.

    Libraries promise no exhaustive list of what a damaged file makes them raise: struct.error, MemoryError and
    RecursionError among them.
    """
    try:
        yield
    except ShadowDefenseError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{shown(path)} does not exist: correct the path") from error
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        told = shown(" ".join(reason.split()), 200) or type(error).__name__
        raise DataError(f"cannot read {what} {shown(path)}: {told}; {hint}") from error


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep libraries from printing about a file: their warnings quote it raw, and what counts is checked here.

    Python keeps its filters for all threads together: enter this before threads are started.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def large_in_turn(pixels: int) -> Iterator[None]:
    """Let images above :data:`LARGE_PIXELS` wait for each other: decoded, each takes some hundred megabytes."""
    with _turn if pixels > LARGE_PIXELS else nullcontext():
        yield


def open_plain(path: Path, most: int) -> BinaryIO:
    """Open a file of at most ``most`` bytes.

    Raises:
        DataError: for a folder, a pipe or a device, and for a larger file.
        OSError, ValueError: as the system raises them; :func:`reading` tells them.
    """
    # Asked before it is opened: opening a pipe can wait for ever, and opening a device can act.
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{shown(path)} is a folder, a pipe or a device: expected a plain file; remove or rename it")
    if found.st_size > most:
        raise DataError(f"{shown(path)} has {found.st_size} bytes: expected at most {most}; split or shrink it")
    return path.open("rb")


def check_pixels(width: int, height: int, path: Path) -> None:
    """Raise :class:`DataError` for an image without pixels, or with more than :data:`IMAGE_PIXELS`."""
    if width < 1 or height < 1 or width * height > IMAGE_PIXELS:
        raise DataError(f"{shown(path)} has {width} x {height} pixels: expected 1 to {IMAGE_PIXELS}; crop or shrink it")


def check_name(name: str, what: str) -> str:
    """``name`` as it is. Raises :class:`DataError` where it could not be printed: control characters, or very long."""
    # Kinds C*: control, format, surrogate and unassigned characters; Zl and Zp: ends of line.
    if len(name) > 1000 or any(unicodedata.category(each)[0] == "C" or each in "\u2028\u2029" for each in name):
        raise DataError(f"{what} '{shown(name)}': expected at most 1000 printable characters; rename it")
    return name
