"""Tasks in several processes: those that die are told apart from those that die with them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_double
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from shadow_defense.errors import RunError
from shadow_defense.experiment.preloading import forking_context
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.work import Counting, Work, computed
from shadow_defense.handed_on import take_part

OUT_OF_MEMORY = "was killed (SIGKILL), perhaps for lack of memory: set workers=1"
"""What is said of a process that the system ended."""

_counted: Any = None
"""In a worker: the weight, shared with the parent, of what all workers have done."""


class WorkerKilledError(RunError):
    """A worker process died, and with it the work of all that ran at that moment."""


class _KilledError(Exception):
    """A process died while these tasks ran; its message says how."""

    def __init__(self, running: Sequence[Task], how: str) -> None:
        super().__init__(how)
        self.running = tuple(running)


def in_processes(work: Work) -> None:
    while work.unfinished:
        lone = next((task for task in work.ready() if task.alone), None)
        try:
            _pool(work, lone)
        except _KilledError as killed:
            if not work.isolate:
                raise WorkerKilledError(f"a worker process {killed}; the same command goes on from here") from killed
            if lone:
                work.end(lone, f"its process {killed}")
                continue
            # One that is killed takes its neighbours with it: each of them again, alone; one that dies alone failed.
            for suspect in killed.running:
                try:
                    _pool(work, suspect)
                except _KilledError as alone:
                    work.end(suspect, f"its process {alone}")


def _pool(work: Work, only: Task | None) -> None:
    """Work off what is unfinished, or ``only`` one task of it, in one pool of new processes."""
    unfinished = work.unfinished
    context = forking_context()
    counted = context.Value(c_double, 0.0)
    earlier, processes = set(multiprocessing.active_children()), set[BaseProcess]()
    running: dict[Future[str | None], Task] = {}
    count, seen = 1 if only else work.workers.at_once(len(unfinished)), 0.0
    try:
        with ProcessPoolExecutor(
            count,
            mp_context=context,
            initializer=_start_worker,
            initargs=(counted, work.workers.threads, work.store.shared),
        ) as pool:
            try:
                while True:
                    started = {task.name for task in running.values()}
                    for task in work.ready():
                        if len(running) >= count:
                            break
                        if task.name in started or (task.alone if only is None else task.name != only.name):
                            continue
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
                    done_by_now = counted.value
                    work.advance(done_by_now - seen)
                    seen = done_by_now
                    for future in done:
                        line = future.result()
                        work.end(running.pop(future), line)
            except BaseException:
                # Not left to end by themselves: that may take hours, without a bar and for nothing.
                for process in processes | set(multiprocessing.active_children()) - earlier:
                    process.terminate()
                raise
    except BrokenProcessPool as error:
        raise _KilledError(list(running.values()), _how_it_died(processes)) from error


def _how_it_died(processes: Iterable[BaseProcess]) -> str:
    """What a dead worker's exit code says, in words; terminated by this process are those that it ended itself."""
    codes = {code for process in processes if (code := process.exitcode) not in (None, 0, -signal.SIGTERM)}
    if -signal.SIGKILL in codes:
        return OUT_OF_MEMORY
    signals = sorted(signal.Signals(-code).name for code in codes if code < 0)
    if signals:
        return f"was ended by {signals[0]}: its last words, if any, stand above"
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not Path(script).exists():
        return (
            f"could not start: it imports the script that started it, and {Path(script).name} is no file (a script "
            "read from standard input): save it in one, or set workers=0"
        )
    ended = f"with exit code {min(codes)}" if codes else "early"
    return f"ended {ended}: its error stands above; set workers=0 to see it where it happens"


def _start_worker(counted: Any, threads: int, shared: Path) -> None:
    global _counted
    take_part(shared)
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


def _add(weight: float) -> None:
    with _counted.get_lock():
        _counted.value += weight


def _in_worker(task: Task, store: Store, weight: float, isolate: bool) -> str | None:
    return computed(task, store, Counting(task, weight, _add), isolate)
