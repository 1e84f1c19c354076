"""Tasks on their way: what waits, how it is computed one by one, and what became of it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shadow_defense.errors import ShadowDefenseError, shown
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.files import write_text
from shadow_defense.progress import Progress
from shadow_defense.progress import Task as Steps

FAILED_BEFORE = "what it needs failed: "
"""Before the error of what failed, however far ahead."""


@dataclass(frozen=True)
class Workers:
    """How tasks are carried out.

    Attributes:
        count: processes; 0: in this one; None: one a usable processor core.
        threads: of each, fixed, so that numbers do not depend on how many processes share the machine.
    """

    count: int | None = None
    threads: int = 1

    def at_once(self, waiting: int) -> int:
        """How many processes for so many tasks: never more than there are tasks."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(cores if self.count is None else self.count, waiting))


@dataclass
class Outcome:
    """What became of the tasks: the one-line error of each that failed, or that a failed one kept from starting."""

    failures: dict[Task, str] = field(default_factory=dict)


@dataclass
class Work:
    """What is to be computed, and how.

    Attributes:
        unfinished: by name, needs first.
        weights: of each task in the bar, by name.
        isolate: one that fails leaves the others alone.
    """

    unfinished: dict[str, Task]
    store: Store
    workers: Workers
    weights: Mapping[str, float]
    bar: Steps
    isolate: bool
    outcome: Outcome = field(default_factory=Outcome)
    _done: float = 0.0
    _shown: int = 0

    def advance(self, weight: float) -> None:
        """So much more is done: the bar counts whole units."""
        self._done += weight
        # Of sums of parts the last digits are missing.
        whole = int(self._done + 1e-6)
        self.bar.advance(whole - self._shown)
        self._shown = whole

    def ready(self) -> Iterator[Task]:
        """What needs nothing unfinished."""
        waiting = list(self.unfinished.values())
        return (task for task in waiting if not any(need.name in self.unfinished for need in task.needs()))

    def end(self, task: Task, line: str | None) -> None:
        """A task has ended: well, or with the one-line error ``line``, and with it what needs it."""
        self.unfinished.pop(task.name, None)
        if line is None:
            return
        self.outcome.failures[task] = line
        for other in list(self.unfinished.values()):
            if any(need.name == task.name for need in other.needs()):
                self.end(other, FAILED_BEFORE + line.removeprefix(FAILED_BEFORE))


def computed(task: Task, store: Store, counting: Counting, isolate: bool) -> str | None:
    """Compute a task; with ``isolate`` the one line of what it raised, or None."""
    try:
        task.compute(store, counting)
        store.record(task)
    except Exception as error:
        if not isolate:
            raise
        return failure_line(error, store.folder / "traces" / f"{task.name}.txt")
    finally:
        counting.end()
    return None


def failure_line(error: Exception, trace: Path) -> str:
    """An error in one line; that of a programmer leaves its trace in the file ``trace``."""
    line = " ".join(str(error).split())
    if isinstance(error, ShadowDefenseError):
        return line
    write_text(trace, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {shown(line, 300)} (trace in {trace})"


class Counting(Progress):
    """Passes on, as parts of a task's weight, the steps that the task announces, and the rest when it ends."""

    def __init__(self, task: Task, weight: float, advance: Callable[[float], None]) -> None:
        self._counted, self._advance = task.counted, advance
        self._each, self._left = weight / max(task.steps(), 1), weight

    def start(self, name: str, total: int) -> Steps:
        if self._counted is None or not name.startswith(self._counted):
            return Steps()
        counting = self

        class Counted(Steps):
            def advance(self, steps: int = 1, note: str = "") -> None:
                counting._pass_on(steps * counting._each)

        return Counted()

    def end(self) -> None:
        self._pass_on(self._left)

    def _pass_on(self, weight: float) -> None:
        # A task may report more steps than it announced.
        passed = min(weight, self._left)
        self._left -= passed
        self._advance(passed)
