"""One process at a time writes into a folder, and finds nothing half written there."""

from __future__ import annotations

import datetime
import fcntl
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.files import LOCK, PRIVATE_FILE, make_private_folder, remove_leftovers

HOLDER_BYTES = 200
"""Read of a lock's file, which says who holds it."""


_HELD: set[tuple[Path, int, int]] = set()
"""What is held: the folder, and by which process and thread of it."""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder`` while the block runs; it is made, for its owner alone, where missing.

    The system ends the lock with the process, however that ends. What killed processes left half written is removed,
    and so is what workers leave that are ended when the block fails. A folder made here that stays empty goes again.
    Who holds a folder may hold it again: a command holds it for all of its stages, and each stage for itself.

    Raises:
        RunError: when another process holds the folder, naming it, or the folder cannot be used.
    """
    holder = (folder.absolute(), os.getpid(), threading.get_ident())
    if holder in _HELD:
        yield
        return
    try:
        made = not folder.exists()
        make_private_folder(folder)
        held = _lock(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be used: {error.strerror or error}; choose another folder") from error
    try:
        _HELD.add(holder)
        remove_leftovers(folder)
        try:
            yield
        except BaseException:
            remove_leftovers(folder)
            raise
    finally:
        _HELD.discard(holder)
        with suppress(OSError):
            (folder / LOCK).unlink()
            if made:
                folder.rmdir()
        os.close(held)


def _lock(folder: Path) -> int:
    """The open file that holds the lock."""
    path = folder / LOCK
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE_FILE)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between the two calls: then this lock keeps nobody out.
            if path.exists() and os.path.samestat(os.fstat(held), path.stat()):
                since = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
                os.ftruncate(held, 0)
                os.pwrite(held, f"process {os.getpid()} on {platform.node()} since {since}".encode(), 0)
                return held
        except BlockingIOError as error:
            holder = os.pread(held, HOLDER_BYTES, 0).decode("utf-8", "replace") or "another process"
            os.close(held)
            raise RunError(
                f"{folder} is in use by {holder}: wait until it is done, or choose another folder"
            ) from error
        except BaseException:
            os.close(held)
            raise
        os.close(held)
