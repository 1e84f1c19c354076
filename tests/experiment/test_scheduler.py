"""Tasks in the order of their needs: each once, none beside a failure that it needs, none left running."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from shadow_defense.errors import DefenseError, RunError
from shadow_defense.experiment.preloading import forking_context
from shadow_defense.experiment.processes import OUT_OF_MEMORY
from shadow_defense.experiment.scheduler import carry_out, missing
from shadow_defense.experiment.store import RECORD, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.work import Counting, Workers
from shadow_defense.files import read_json, write_text
from shadow_defense.handed_on import HandedOn
from shadow_defense.progress import Progress
from shadow_defense.progress import Task as Steps
from tests.test_folder_lock import held_elsewhere

LONG = 400.0
"""Seconds: more than any of these tests may take."""


def kept(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        write_text(path, make())
    return path.read_text()


MEASURED = HandedOn[str]("what-toys-measure", most=1, kept=kept)


@dataclass(frozen=True, eq=False)
class Toy(Task):
    """Writes its name, after what ``how`` says."""

    label: str
    how: str = "fine"
    needed: tuple[Task, ...] = ()

    kind = "toy"

    @property
    def key(self) -> str:
        return self.label

    def needs(self) -> Sequence[Task]:
        return self.needed

    def is_done(self, place: Path) -> bool:
        return (place / "result").exists()

    def decided_by(self) -> Mapping[str, Any]:
        return {"how": self.how}

    def compute(self, store: Store, progress: Progress) -> None:
        assert all(store.has(task) for task in self.needed)
        if self.how == "refused":
            raise DefenseError("too strong")
        if self.how == "broken":
            raise KeyError("lost")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "long":
            write_text(store.folder / "processes" / str(os.getpid()), "")
            time.sleep(LONG)
        by = f"{self.label} in {os.getpid()}"
        write_text(store.place(self) / "result", MEASURED.of("toys", lambda: by) if self.how == "handed on" else by)


class Lone(Toy):
    """Wants a process for itself."""

    @property
    def alone(self) -> bool:
        return True


def names(tasks: Sequence[Task]) -> list[str]:
    return [task.key for task in tasks]


def test_needs_come_first_and_each_result_once(tmp_path: Path) -> None:
    base = Toy("base")
    twins = Toy("a", needed=(base,)), Toy("a", needed=(Toy("base"),))
    assert names(missing([Toy("b", needed=twins), *twins], Store(tmp_path))) == ["base", "a", "b"]


@pytest.mark.parametrize("count", [0, 2])
def test_results_are_computed_once_and_recorded(tmp_path: Path, count: int) -> None:
    store, base = Store(tmp_path / "plan"), Toy("base")
    tasks = [Toy(str(number), needed=(base,)) for number in range(5)]
    assert carry_out(tasks, store, Workers(count)).failures == {}
    assert all(store.has(task) for task in tasks)
    results = {task.key: (store.place(task) / "result").read_text() for task in (base, *tasks)}
    assert {text.rpartition(" ")[2] == str(os.getpid()) for text in results.values()} == {count == 0}
    record = store.provenance(base)
    assert (record.kind, record.key) == ("toy", "base")
    assert {"torch", "numpy", "shadow-defense"} <= record.versions.keys() and record.created
    # A worker has torch in memory, and not the whole machine.
    assert record.peak_megabytes is not None and 100 < record.peak_megabytes < 100_000
    assert read_json(store.place(base) / RECORD)["task"] == {"how": "fine"}
    carry_out(tasks, store, Workers(count))
    assert {task.key: (store.place(task) / "result").read_text() for task in (base, *tasks)} == results


def test_a_worker_begins_with_what_its_parent_has_measured(tmp_path: Path) -> None:
    store, task = Store(tmp_path / "plan"), Toy("a", "handed on")
    assert MEASURED.of("toys", lambda: "measured once") == "measured once"
    carry_out([task], store, Workers(1))
    assert (store.place(task) / "result").read_text() == "measured once"
    assert not store.shared.exists()


@pytest.mark.parametrize("count", [0, 1])
def test_what_one_task_has_measured_the_next_in_another_process_need_not(tmp_path: Path, count: int) -> None:
    store, first = Store(tmp_path / "plan"), Lone("first", "handed on")
    tasks = [first, Lone("second", "handed on", (first,))]
    MEASURED.results.clear()
    carry_out(tasks, store, Workers(count))
    assert {(store.place(task) / "result").read_text().rpartition(" ")[0] for task in tasks} == {"first in"}
    assert list(MEASURED.results) == ["toys"] * (count == 0)


def test_what_was_shared_is_of_one_command(tmp_path: Path) -> None:
    store = Store(tmp_path / "plan")
    for label in ("first", "second"):
        MEASURED.results.clear()
        # As a killed process leaves it.
        write_text(MEASURED.path(store.shared, "toys"), "of code that is gone")
        carry_out([Toy(label, "handed on")], store, Workers(1))
        assert (store.place(Toy(label)) / "result").read_text().startswith(f"{label} in ")


def test_a_result_without_its_record_is_computed_again(tmp_path: Path) -> None:
    store, task = Store(tmp_path), Toy("a")
    carry_out([task], store, Workers(0))
    (store.place(task) / RECORD).unlink()
    assert not store.has(task)
    carry_out([task], store, Workers(0))
    assert store.has(task)


def test_what_a_neighbour_has_is_taken_over_but_not_from_others(tmp_path: Path) -> None:
    first, second, task = Store(tmp_path / "first"), Store(tmp_path / "second"), Toy("a")
    carry_out([task], first, Workers(0))
    (tmp_path / "first" / "store").chmod(0o770)
    assert not second.has(task)
    (tmp_path / "first" / "store").chmod(0o700)
    assert second.has(task)
    assert second.provenance(task) == first.provenance(task)
    (first.place(task) / "result").unlink()
    assert (second.place(task) / "result").read_text().startswith("a in")


@pytest.mark.parametrize("count", [0, 2])
def test_a_failure_leaves_the_others_alone_but_for_what_needs_it(tmp_path: Path, count: int) -> None:
    refused, broken = Toy("refused", "refused"), Toy("broken", "broken")
    after = Toy("after", needed=(refused,))
    last = Toy("last", needed=(after,))
    tasks = [Toy("a"), refused, broken, Toy("b"), after, last, Toy("c", needed=(Toy("a"),))]
    found = carry_out(tasks, Store(tmp_path), Workers(count), isolate=True)
    failures = {task.key: line for task, line in found.failures.items()}
    assert failures.keys() == {"refused", "broken", "after", "last"}
    assert failures["refused"] == "too strong"
    assert failures["after"] == failures["last"] == "what it needs failed: too strong", "said once"
    assert failures["broken"].startswith("KeyError: 'lost' (trace in ")
    (trace,) = (tmp_path / "traces").iterdir()
    assert "in compute" in trace.read_text()
    assert all(Store(tmp_path).has(Toy(name)) for name in ("a", "b", "c"))


def test_a_task_that_wants_to_be_alone_has_a_process_of_its_own(tmp_path: Path) -> None:
    store, alone = Store(tmp_path), [Lone("x"), Lone("y", needed=(Toy("a"),))]
    tasks = [Toy("a"), *alone, Toy("b", needed=(alone[0],))]
    assert carry_out(tasks, store, Workers(2)).failures == {}
    process = {task.key: (store.place(task) / "result").read_text().rpartition(" ")[2] for task in tasks}
    assert len({process["x"], process["y"]} | {process["a"]}) == 3 and process["b"] not in (process["x"], process["y"])


def test_every_thread_that_asks_reads_how_a_process_ended() -> None:
    """The pool's own thread asks too; how it ended comes through a pipe that holds it once."""
    for _ in range(20):
        process = forking_context().Process(target=time.sleep, args=(LONG,))
        process.start()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        wait([process.sentinel])
        with ThreadPoolExecutor(4) as threads:
            read = [each.result() for each in [threads.submit(lambda one: one.exitcode, process) for _ in range(4)]]
        assert {*read, process.exitcode} == {-signal.SIGKILL}


def test_a_killed_process_takes_nobody_with_it(tmp_path: Path) -> None:
    tasks = [Toy("a"), Toy("killed", "killed"), Toy("b"), Toy("c")]
    found = carry_out(tasks, Store(tmp_path), Workers(2), isolate=True)
    assert {task.key: line for task, line in found.failures.items()} == {"killed": f"its process {OUT_OF_MEMORY}"}
    assert all(Store(tmp_path).has(Toy(name)) for name in ("a", "b", "c"))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("refused", DefenseError, "too strong"),
        ("killed", RunError, r"worker process was killed \(SIGKILL\), perhaps for lack of memory"),
    ],
)
def test_a_failure_ends_the_other_processes(tmp_path: Path, how: str, error: type[Exception], message: str) -> None:
    """The other arm may need hours; nobody sees a bar in that time."""
    store, long = Store(tmp_path), Toy("long", "long")
    with pytest.raises(error, match=message):
        carry_out([long, Toy("wrong", how)], store, Workers(2))
    assert not store.has(long)
    assert [child for child in multiprocessing.active_children() if child.name.startswith("ForkServer")] == []


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def run_long(folder: str) -> None:
    carry_out([Toy("one", "long"), Toy("two", "long")], Store(Path(folder)), Workers(2))


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=run_long, args=(str(tmp_path),))
    parent.start()
    workers: list[int] = []
    deadline = time.monotonic() + LONG
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = [int(path.name) for path in tmp_path.glob("processes/[0-9]*")]
        time.sleep(0.1)
    assert len(workers) == 2
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + LONG / 2
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def test_two_processes_do_not_compute_into_one_store(tmp_path: Path) -> None:
    task = Toy("a")
    with held_elsewhere(tmp_path / "plan") as number, pytest.raises(RunError, match=f"in use by process {number}"):
        carry_out([task], Store(tmp_path / "plan"), Workers(0))
    assert not Store(tmp_path / "plan").has(task)
    carry_out([task], Store(tmp_path / "plan"), Workers(0))
    assert Store(tmp_path / "plan").has(task)


class Stepping(Toy):
    """A toy of four steps, each reported, and of others that are not its own."""

    counted = "toying"

    def steps(self) -> int:
        return 4

    def compute(self, store: Store, progress: Progress) -> None:
        other, steps = progress.start("measuring", 9), progress.start("toying", 4)
        for _ in range(3):
            other.advance(3)
            steps.advance()
        super().compute(store, progress)


class Bars(Progress, Steps):
    """What a bar was told: its total, then each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def start(self, name: str, total: int) -> Steps:
        self.seen.append(total)
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.seen.append(steps)


@pytest.mark.parametrize("count", [0, 2])
def test_a_bar_counts_the_steps_of_its_tasks_and_ends_full(tmp_path: Path, count: int) -> None:
    """Counted by tasks it would stand still while one of them takes minutes; a task may report too few."""
    bars = Bars()
    carry_out([Stepping("a"), Toy("b"), Stepping("c")], Store(tmp_path / "out"), Workers(count), bars)
    total, *steps = bars.seen
    assert total == sum(steps) == 9
    if count == 0:
        assert steps == [1] * 9, "one by one, and what others report counts for nothing"


def test_parts_of_a_unit_are_not_lost(tmp_path: Path) -> None:
    """Of many short tasks a bar forgot all."""
    bars = Bars()
    carry_out([Toy(str(number)) for number in range(10)], Store(tmp_path), Workers(0), bars, weight=lambda _: 0.2)
    assert bars.seen[0] == sum(bars.seen[1:]) == 2


def test_no_task_counts_for_more_than_its_weight() -> None:
    """Whatever number of steps it reports: else a bar says that more is done than there is."""
    passed = list[float]()
    counting = Counting(Stepping("a"), 3.0, passed.append)
    steps = counting.start("toying", 1)
    for _ in range(10):
        steps.advance()
    counting.end()
    assert sum(passed) == 3
