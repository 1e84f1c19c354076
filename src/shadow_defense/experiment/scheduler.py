"""Tasks in the order of their needs, in this process or in several; it knows nothing of what a task is."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_long
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from shadow_defense.errors import RunError, ShadowDefenseError, shown
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.files import write_text
from shadow_defense.folder_lock import holding
from shadow_defense.progress import Progress
from shadow_defense.progress import Task as Steps

KILLED = "its process was killed, perhaps for lack of memory"

FINE = 1000
"""Parts into which a unit of a task's weight is counted."""

PRELOADED = "shadow_defense.experiment.tasks"
"""What a worker process has imported when it starts: once for all of them."""

_counted: Any = None
"""In a worker: the number, shared with the parent, of parts that all workers have done."""


class WorkerKilledError(RunError):
    """A worker process died, and with it the work of all that ran at that moment."""


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
        return max(1, min(self.count or cores, waiting))


@dataclass
class Outcome:
    """What became of the tasks: the one-line error of each that failed, or that a failed one kept from starting."""

    failures: dict[Task, str] = field(default_factory=dict)


def missing(tasks: Sequence[Task], store: Store) -> list[Task]:
    """What has to be computed for ``tasks``, needs first, each result once."""
    found: dict[str, Task] = {}

    def visit(task: Task) -> None:
        if task.name in found or store.has(task):
            return
        for need in task.needs():
            visit(need)
        found[task.name] = task

    for task in tasks:
        visit(task)
    return list(found.values())


def carry_out(
    tasks: Sequence[Task],
    store: Store,
    workers: Workers,
    progress: Progress | None = None,
    *,
    name: str = "computing",
    weight: Callable[[Task], float] | None = None,
    isolate: bool = False,
) -> Outcome:
    """Compute what of ``tasks`` and their needs is not in the store.

    Args:
        weight: of a task in the progress bar; None: its steps.
        isolate: one that fails leaves the others alone, and is in the outcome; else its error is raised at once.

    Raises:
        RunError: when another process computes into the store.
        WorkerKilledError: when a process was killed, usually for lack of memory; finished work is kept.
        Whatever a task raises, without ``isolate``; the other processes are ended: files are whole or absent.
    """
    waiting = missing(tasks, store)
    if not waiting:
        return Outcome()
    weights = {task.name: float((weight or Task.steps)(task)) for task in waiting}
    bar = (progress or Progress()).start(name, max(1, round(sum(weights.values()))))
    work = _Work({task.name: task for task in waiting}, store, workers, weights, bar, isolate)
    try:
        with holding(store.folder):
            if workers.count == 0:
                _in_this_process(work)
            else:
                _in_processes(work)
    finally:
        bar.finish()
    return work.outcome


def ready(waiting: Sequence[Task], unfinished: Mapping[str, Task]) -> Iterator[Task]:
    """Those of ``waiting`` that need nothing unfinished."""
    return (task for task in waiting if not any(need.name in unfinished for need in task.needs()))


@dataclass
class _Work:
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

    def end(self, task: Task, line: str | None) -> None:
        """A task has ended: well, or with the one-line error ``line``, and with it what needs it."""
        self.unfinished.pop(task.name, None)
        if line is None:
            return
        self.outcome.failures[task] = line
        for other in list(self.unfinished.values()):
            if any(need.name == task.name for need in other.needs()):
                self.end(other, f"what it needs failed: {line}")


def _in_this_process(work: _Work) -> None:
    with threads_of_torch(work.workers.threads):
        for task in list(work.unfinished.values()):
            if task.name in work.unfinished:
                counting = _Counting(task, work.weights[task.name], work.bar.advance)
                work.end(task, _computed(task, work.store, counting, work.isolate))


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """So many threads for torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Counting(Progress):
    """Passes on the steps of the tasks that count, in parts of the task's weight; others stay silent."""

    def __init__(self, task: Task, weight: float, advance: Callable[[int], None], fine: int = 1) -> None:
        self._counted, self._advance = task.counted, advance
        self._each, self._rest = fine * weight / max(task.steps(), 1), 0.0

    def start(self, name: str, total: int) -> Steps:
        counting = self

        class Counted(Steps):
            def advance(self, steps: int = 1, note: str = "") -> None:
                counting._rest += steps * counting._each
                whole = int(counting._rest)
                counting._rest -= whole
                counting._advance(whole)

        return Counted() if name.startswith(self._counted) else Steps()


def _computed(task: Task, store: Store, progress: Progress, isolate: bool) -> str | None:
    """Compute a task; with ``isolate`` the one line of what it raised, or None."""
    try:
        task.compute(store, progress)
        store.record(task)
    except Exception as error:
        if not isolate:
            raise
        return failure_line(error, store.folder / "traces" / f"{task.name}.txt")
    return None


def failure_line(error: Exception, trace: Path) -> str:
    """An error in one line; that of a programmer leaves its trace in the file ``trace``."""
    line = " ".join(str(error).split())
    if isinstance(error, ShadowDefenseError):
        return line
    write_text(trace, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {shown(line, 300)} (trace in {trace})"


def _start_worker(counted: Any, threads: int) -> None:
    global _counted
    _counted = counted
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed ends nothing: its workers would compute on, for hours and for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # Without clean-up: files are whole or absent, and the queues lead nowhere.
        os._exit(1)


def _add(parts: int) -> None:
    with _counted.get_lock():
        _counted.value += parts


def _in_worker(task: Task, store: Store, weight: float, isolate: bool) -> str | None:
    counting = _Counting(task, weight, _add, FINE)
    return _computed(task, store, counting, isolate)


def _in_processes(work: _Work) -> None:
    while work.unfinished:
        lone = next((task for task in ready(list(work.unfinished.values()), work.unfinished) if task.alone), None)
        try:
            _pool(work, lone)
        except _KilledError as killed:
            if not work.isolate:
                raise WorkerKilledError(
                    "a worker process was killed, perhaps for lack of memory: set workers=1; the same command goes on "
                    "from here"
                ) from killed
            if lone:
                work.end(lone, KILLED)
                continue
            # One that is killed takes its neighbours with it: each of them again, alone; one that dies alone failed.
            for suspect in killed.running:
                try:
                    _pool(work, suspect)
                except _KilledError:
                    work.end(suspect, KILLED)


class _KilledError(Exception):
    """A process died while these tasks ran."""

    def __init__(self, running: Sequence[Task]) -> None:
        super().__init__()
        self.running = tuple(running)


def _pool(work: _Work, only: Task | None) -> None:
    """Work off what is unfinished, or ``only`` one task of it, in one pool of new processes."""
    unfinished = work.unfinished
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    counted = context.Value(c_long, 0)
    earlier, processes = set(multiprocessing.active_children()), set[BaseProcess]()
    running: dict[Future[str | None], Task] = {}
    count, seen = 1 if only else work.workers.at_once(len(unfinished)), 0
    try:
        with ProcessPoolExecutor(
            count, mp_context=context, initializer=_start_worker, initargs=(counted, work.workers.threads)
        ) as pool:
            try:
                while True:
                    started = {task.name for task in running.values()}
                    candidates = [only] if only and only.name in unfinished else [] if only else unfinished.values()
                    idle = [task for task in candidates if task.name not in started and (only or not task.alone)]
                    for task in ready(idle, unfinished):
                        if len(running) >= count:
                            break
                        future = pool.submit(_in_worker, task, work.store, work.weights[task.name], work.isolate)
                        running[future] = task
                        # At once: of one that has died it tells nothing any more.
                        processes |= set(multiprocessing.active_children()) - earlier
                    if not running:
                        return
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    if any(process.exitcode for process in processes):
                        # The pool may miss the death of the process that it started last, and wait for the others.
                        raise BrokenProcessPool
                    whole = counted.value // FINE
                    work.bar.advance(whole - seen)
                    seen = whole
                    for future in done:
                        line = future.result()
                        work.end(running.pop(future), line)
            except BaseException:
                # Not left to end by themselves: that may take hours, without a bar and for nothing.
                for process in processes | set(multiprocessing.active_children()) - earlier:
                    process.terminate()
                raise
    except BrokenProcessPool as error:
        raise _KilledError(list(running.values())) from error
