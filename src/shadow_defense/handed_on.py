"""What one process of a command has measured, and the others need not measure again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

_kinds: dict[str, HandedOn[Any]] = {}
_folder: Path | None = None


class HandedOn(Generic[Result]):
    """The latest results of a kind, each made once: for this process, or for all that share a folder.

    Args:
        what: the kind, which a process has once.
        most: results that are kept in memory.
        kept: the result in a file, to the bit, or where there is none what is made, which then lies there.
    """

    def __init__(self, what: str, most: int, kept: Callable[[Path, Callable[[], Result]], Result]) -> None:
        self.what, self.most, self.results = what, most, dict[str, Result]()
        self._kept = kept
        _kinds[what] = self

    def of(self, name: str, make: Callable[[], Result]) -> Result:
        """The result of that name, made where there is none."""
        if name not in self.results:
            if len(self.results) >= self.most:
                del self.results[next(iter(self.results))]
            self.results[name] = make() if _folder is None else self._kept(self.path(_folder, name), make)
        return self.results[name]

    def hand_on(self, folder: Path) -> None:
        """Write what this process has."""
        for name in self.results:
            self._kept(self.path(folder, name), partial(self.results.__getitem__, name))

    def path(self, folder: Path, name: str) -> Path:
        """Where the result of that name lies in a folder that is shared."""
        return folder / self.what / hashlib.sha256(name.encode()).hexdigest()


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Share results below ``folder`` while the block runs; they go with it, since no name says by which code."""
    earlier = _folder
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for kind in _kinds.values():
            kind.hand_on(folder)
        take_part(folder)
        yield
    finally:
        take_part(earlier)
        shutil.rmtree(folder, ignore_errors=True)


def take_part(folder: Path | None) -> None:
    """Share results below ``folder`` from now on, as the process that started this one does."""
    global _folder
    _folder = folder
