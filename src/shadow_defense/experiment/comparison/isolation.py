"""Cells in parallel processes, where the failure of one leaves the others alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shadow_defense.errors import ShadowDefenseError
from shadow_defense.experiment.comparison.cells import key_of
from shadow_defense.experiment.workers import Call, WorkerKilledError, run_parallel, worker_count
from shadow_defense.files import write_text
from shadow_defense.progress import Progress

Key = TypeVar("Key", bound=Hashable)

KILLED = "its process was killed, perhaps for lack of memory"


def guarded(function: Callable[..., None], trace: Path, *arguments: Any) -> str | None:
    """Call ``function``; the one line of what it raised, or None. A programming error leaves its trace in a file."""
    try:
        function(*arguments)
    except Exception as error:
        return failure_line(error, trace)
    return None


def failure_line(error: Exception, trace: Path) -> str:
    """An error in one line; that of a programmer leaves its trace in the file ``trace``."""
    line = " ".join(str(error).split())
    if isinstance(error, ShadowDefenseError):
        return line
    write_text(trace, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {line[:300]} (trace in {trace})"


def run_isolated(
    calls: Mapping[Key, Call],
    *,
    traces: Path,
    workers: int | None,
    threads: int,
    name: str,
    total_steps: int,
    progress: Progress,
) -> dict[Key, str]:
    """Run every call; returns the one-line error of each that failed.

    A process that is killed takes its neighbours with it: those that may have run at that moment are run again, each
    alone, and one that dies alone has failed.
    """
    outcomes: dict[Key, str | None] = {}

    def run_some(keys: list[Key], count: int) -> None:
        run_parallel(
            (
                (key, Call(guarded, (calls[key].function, traces / f"{key_of(str(key))}.txt", *calls[key].arguments)))
                for key in keys
            ),
            workers=count,
            threads=threads,
            name=name,
            total_steps=total_steps,
            progress=progress,
            finished=outcomes.__setitem__,
        )

    waiting = list(calls)
    while waiting:
        count = worker_count(workers, len(waiting))
        try:
            run_some(waiting, count)
        except WorkerKilledError:
            # One more than there are workers is handed out at a time.
            for key in [key for key in waiting if key not in outcomes][: count + 1]:
                try:
                    run_some([key], 1)
                except WorkerKilledError:
                    outcomes[key] = KILLED
        waiting = [key for key in waiting if key not in outcomes]
    return {key: error for key, error in outcomes.items() if error is not None}
