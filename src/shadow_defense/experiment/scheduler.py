"""Tasks in the order of their needs, in this process or in several; it knows nothing of what a task is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shadow_defense.experiment.processes import in_processes
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.work import Counting, Outcome, Work, Workers, computed
from shadow_defense.folder_lock import holding
from shadow_defense.handed_on import sharing
from shadow_defense.progress import Progress
from shadow_defense.threads import threads_of_torch


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
    # Each task's own steps, not the base class's: a bar of so many tasks would stand still for minutes.
    weights = {task.name: float(task.steps() if weight is None else weight(task)) for task in waiting}
    bar = (progress or Progress()).start(name, max(1, round(sum(weights.values()))))
    work = Work({task.name: task for task in waiting}, store, workers, weights, bar, isolate)
    try:
        with holding(store.folder), sharing(store.shared):
            if workers.count == 0:
                _in_this_process(work)
            else:
                in_processes(work)
    finally:
        bar.finish()
    return work.outcome


def _in_this_process(work: Work) -> None:
    with threads_of_torch(work.workers.threads):
        for task in list(work.unfinished.values()):
            if task.name in work.unfinished:
                counting = Counting(task, work.weights[task.name], work.advance)
                work.end(task, computed(task, work.store, counting, work.isolate))
