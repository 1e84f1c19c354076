"""Progress bars with the time left, for work of more than two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from shadow_defense.progress import Progress, Task, duration

DELAY = 2.0
"""Seconds of work before a bar appears: shorter work would only flicker."""

HEARTBEAT = 60.0
"""Seconds between lines of a task where no bar can be drawn: a log shows that the work goes on, and how far it is."""


class BarTask(Task):
    """A task that shows its bar once it has lasted longer than :data:`DELAY`."""

    def __init__(self, bars: RichProgress, name: str, total: int, ended: Callable[[BarTask], None]) -> None:
        self._bars, self._name, self._ended = bars, name, ended
        self._done, self._total, self._note = 0, total, ""
        self._started = self._told = time.monotonic()
        self._id = bars.add_task(escape(name), total=max(total, 1), visible=False, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._bars.update(self._id, advance=steps, note=escape(note), visible=self._lasts())
        self._done, self._note = self._done + steps, note

    def beat(self) -> None:
        """Show the bar, or where none can be drawn every :data:`HEARTBEAT` seconds a line: how far, how long yet."""
        now = time.monotonic()
        if self._bars.console.is_terminal:
            # A step can take minutes, and its end is too late; the task itself may have ended meanwhile.
            with suppress(KeyError):
                self._bars.update(self._id, visible=self._lasts())
            return
        if now - self._told < HEARTBEAT:
            return
        self._told, spent = now, now - self._started
        # A forecast may be passed: then nobody knows how long yet.
        known = 0 < self._done < self._total
        left = f", about {duration(spent / self._done * (self._total - self._done))} left" if known else ""
        told = f"  {escape(self._name)} {self._done} of {self._total}, {duration(spent)}{left} {escape(self._note)}"
        self._bars.console.print(told.rstrip(), highlight=False)

    def _lasts(self) -> bool:
        return time.monotonic() - self._started > DELAY

    def finish(self) -> None:
        spent = time.monotonic() - self._started
        self._bars.remove_task(self._id)
        self._ended(self)
        # What is only waited for says nothing more once it is over: whether it took that long hangs on the machine.
        if self._done and spent > DELAY:
            self._bars.console.print(f"  {escape(self._name)} [dim]{duration(spent)}[/dim]", highlight=False)


class BarProgress(Progress):
    """Draws one bar a task on the terminal; a context manager that clears them at the end."""

    def __init__(self, console: Console) -> None:
        self._bars = RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
            # Workers report in bursts: over the usual half minute the time left would jump about.
            speed_estimate_period=600,
            # Into a file or a pipe go only lines: of finished tasks, and of those that take minutes.
            disable=not console.is_terminal,
        )
        self._tasks: list[BarTask] = []
        self._over = threading.Event()

    def start(self, name: str, total: int) -> Task:
        task = BarTask(self._bars, name, total, self._tasks.remove)
        self._tasks.append(task)
        return task

    def beat(self) -> None:
        """A sign of life of each task that is due for one."""
        for task in list(self._tasks):
            task.beat()

    def _beat_on(self) -> None:
        # A thread's, not the tasks': one that reports no step for minutes must not be silent.
        while not self._over.wait(1):
            self.beat()

    def __enter__(self) -> BarProgress:
        self._bars.start()
        threading.Thread(target=self._beat_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._bars.stop()


@contextmanager
def working(folder: Path, quiet: bool, console: Console | None = None) -> Iterator[Progress]:
    """Bars as :func:`progress_unless`, while no other process writes into ``folder``."""
    from shadow_defense.folder_lock import holding

    with holding(folder), progress_unless(quiet, console) as progress:
        yield progress


def progress_unless(quiet: bool, console: Console | None = None) -> AbstractContextManager[Progress]:
    """Bars on ``console``, by default standard error; for a ``quiet`` command progress that shows nothing."""
    return nullcontext(Progress()) if quiet else BarProgress(console or Console(stderr=True))
