"""What a plan is made of: one piece of work whose result is found again by a key of all that decides it."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from shadow_defense.progress import Progress

if TYPE_CHECKING:
    from shadow_defense.experiment.store import Store


class Task(ABC):
    """A piece of work. Immutable, and small when it is sent to another process.

    Attributes:
        kind: with the key it names the folder of the result.
        counted: how the names of those of its own progress tasks begin whose steps count towards its :meth:`steps`;
            None: it announces none, and counts as done when it ends.
    """

    kind: ClassVar[str]
    counted: ClassVar[str | None] = None

    @abstractmethod
    def decided_by(self) -> Mapping[str, object]:
        """All that decides the result, in plain values: settings, data, code, versions. It lies beside the result."""

    @cached_property
    def key(self) -> str:
        """A short hash of all that decides the result."""
        decided_by = json.dumps(self.decided_by(), sort_keys=True)
        return hashlib.sha256(decided_by.encode()).hexdigest()[:20]

    @abstractmethod
    def is_done(self, place: Path) -> bool:
        """Whether ``place`` holds the whole result."""

    @abstractmethod
    def compute(self, store: Store, progress: Progress) -> None:
        """Write the result to the task's place in the store, or go on where a killed process stopped."""

    def needs(self) -> Sequence[Task]:
        """The tasks whose results it reads."""
        return ()

    def steps(self) -> int:
        """How many steps of what is ``counted`` it reports, for a progress bar."""
        return 1

    @property
    def given(self) -> Path | None:
        """Where the result lies if something else than a plan wrote it; None: in the store."""
        return None

    @property
    def alone(self) -> bool:
        """Whether it wants a new process, and no other task beside it."""
        return False

    @property
    def about(self) -> str:
        """What it is, in a few words, for people."""
        return self.kind

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.key}"
