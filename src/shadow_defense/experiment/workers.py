"""Independent pieces of work in parallel processes, each with a fixed number of threads."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_long
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import torch

from shadow_defense.errors import RunError
from shadow_defense.progress import Progress, Task

Key = TypeVar("Key", bound=Hashable)


class Call(NamedTuple):
    """A function that a new process can import, and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


_steps_done: Any = None
"""In a worker: the number, shared with the parent, of steps that all workers have done."""


class WorkerKilledError(RunError):
    """A worker process died, and with it the work of all that ran at that moment."""


def _start_worker(steps_done: Any, threads: int) -> None:
    global _steps_done
    _steps_done = steps_done
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed ends nothing: its workers would compute on, for hours and for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # Without clean-up: files are whole or absent, and the queues lead nowhere.
        os._exit(1)


class CountingTask(Task):
    """In a worker: adds to the number that the parent draws its bar from, ``weight`` for each step."""

    def __init__(self, weight: int = 1) -> None:
        self._weight = weight

    def advance(self, steps: int = 1, note: str = "") -> None:
        with _steps_done.get_lock():
            _steps_done.value += steps * self._weight


class CountingProgress(Progress):
    """In a worker: counts the steps of the tasks whose name starts with ``counted``; others stay silent."""

    def __init__(self, counted: str, weight: int = 1) -> None:
        self._counted, self._weight = counted, weight

    def start(self, name: str, total: int) -> Task:
        return CountingTask(self._weight) if name.startswith(self._counted) else Task()


def worker_count(configured: int | None, waiting: int) -> int:
    """The configured number, or one a usable processor core, but never more than there are calls."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(configured or cores, waiting))


def run_parallel(
    calls: Iterator[tuple[Key, Call]],
    *,
    workers: int,
    threads: int,
    name: str,
    total_steps: int,
    progress: Progress,
    finished: Callable[[Key, Any], None],
) -> None:
    """Run every call in one of ``workers`` processes; ``finished`` gets each key and result, in the parent.

    The number of threads in each process is fixed, so that results do not depend on how many processes share the
    machine. Calls are drawn from the iterator only as fast as they are worked off: their arguments may be large.

    Raises:
        WorkerKilledError: when a process was killed, usually for lack of memory; finished work is kept.
        Whatever a call raises, after which the other processes are ended: their files are whole or absent.
    """
    task = progress.start(name, total_steps)
    context = multiprocessing.get_context("spawn")
    steps_done = context.Value(c_long, 0)
    earlier, processes = set(multiprocessing.active_children()), set[BaseProcess]()
    running: dict[Future[Any], Key] = {}
    seen, exhausted = 0, False
    try:
        with ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(steps_done, threads)
        ) as pool:
            try:
                while running or not exhausted:
                    while not exhausted and len(running) <= workers:
                        following = next(calls, None)
                        if following is None:
                            exhausted = True
                        else:
                            key, call = following
                            running[pool.submit(call.function, *call.arguments)] = key
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    processes |= set(multiprocessing.active_children()) - earlier
                    if any(process.exitcode for process in processes):
                        # The pool may miss the death of the process that it started last, and wait for the others.
                        raise BrokenProcessPool
                    now = steps_done.value
                    task.advance(now - seen)
                    seen = now
                    for future in done:
                        finished(running.pop(future), future.result())
            except BaseException:
                # Not left to end by themselves: that may take hours, without a bar and for nothing.
                for process in processes | set(multiprocessing.active_children()) - earlier:
                    process.terminate()
                raise
    except BrokenProcessPool as error:
        raise WorkerKilledError(
            "a worker process was killed, perhaps for lack of memory: set workers=1; the same command goes on from here"
        ) from error
    finally:
        task.finish()
