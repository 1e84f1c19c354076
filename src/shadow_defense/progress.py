"""How long work reports how far it is; the command line draws it, everything else stays silent."""

from __future__ import annotations


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
