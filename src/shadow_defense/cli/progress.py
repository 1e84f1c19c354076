"""Progress bars with the time left, for work of more than two seconds."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from shadow_defense.progress import Progress, Task

DELAY = 2.0
"""Seconds of work before a bar appears: shorter work would only flicker."""

HEARTBEAT = 60.0
"""Seconds between lines of a task where no bar can be drawn: a log shows that the work goes on, and how far it is."""


class BarTask(Task):
    """A task that shows its bar once it has lasted longer than :data:`DELAY`."""

    def __init__(self, bars: RichProgress, name: str, total: int) -> None:
        self._bars, self._name, self._started = bars, name, time.monotonic()
        self._done, self._total, self._told = 0, total, self._started
        self._id = bars.add_task(escape(name), total=max(total, 1), visible=False, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        now = time.monotonic()
        self._bars.update(self._id, advance=steps, note=escape(note), visible=now - self._started > DELAY)
        self._done += steps
        if not self._bars.console.is_terminal and now - self._told >= HEARTBEAT:
            self._told = now
            told = f"  {escape(self._name)} {self._done} of {self._total}, {now - self._started:.0f} s {escape(note)}"
            self._bars.console.print(told.rstrip(), highlight=False)

    def finish(self) -> None:
        spent = time.monotonic() - self._started
        self._bars.remove_task(self._id)
        if spent > DELAY:
            self._bars.console.print(f"  {escape(self._name)} [dim]{spent:.0f} s[/dim]", highlight=False)


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

    def start(self, name: str, total: int) -> Task:
        return BarTask(self._bars, name, total)

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()


def progress_unless(quiet: bool, console: Console | None = None) -> AbstractContextManager[Progress]:
    """Bars on ``console``, by default standard error; for a ``quiet`` command progress that shows nothing."""
    return nullcontext(Progress()) if quiet else BarProgress(console or Console(stderr=True))
