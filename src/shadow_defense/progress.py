"""How long work reports how far it is; the command line draws it, everything else stays silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def duration(seconds: float) -> str:
    """A time in the unit that people would take.

    >>> duration(0.2), duration(61), duration(600), duration(9000)
    ('under 1 s', '61 s', '10 min', '2.5 h')
    """
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Task:
    """One piece of work with a known number of steps; this one is silent."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report ``steps`` more steps done, with a short note such as the current loss."""

    def finish(self) -> None:
        """Report that no more steps come."""


class Progress:
    """Makes tasks; this one is silent. The command line passes one that draws bars with the time left."""

    def start(self, name: str, total: int) -> Task:
        return Task()

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """A step that is only waited for: it is told while it lasts, and not that it is over."""
        task = self.start(name, 1)
        try:
            yield
        finally:
            task.finish()
