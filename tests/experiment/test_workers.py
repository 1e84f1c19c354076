"""Parallel processes: results by key, and no waiting for the others once one has failed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from shadow_defense.errors import DefenseError, RunError
from shadow_defense.experiment.workers import Call, run_parallel
from shadow_defense.progress import Progress

LONG = 120.0
"""Seconds: more than any of these tests may take."""


def square(number: int) -> int:
    return number * number


def refuse() -> None:
    raise DefenseError("the defense cannot do its work")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(calls: dict[str, Call], workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run_parallel(
        iter(calls.items()),
        workers=workers,
        threads=1,
        name="working",
        total_steps=0,
        progress=Progress(),
        finished=found.__setitem__,
    )
    return found


def test_every_result_comes_under_its_key() -> None:
    calls = {str(number): Call(square, (number,)) for number in range(7)}
    assert run(calls, workers=2) == {str(number): number * number for number in range(7)}


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [(refuse, DefenseError, "cannot do its work"), (killed, RunError, "worker process was killed")],
)
def test_a_failure_ends_the_other_processes(function: Any, error: type[Exception], message: str) -> None:
    """The other arm may need hours; nobody sees a bar in that time."""
    started = time.monotonic()
    with pytest.raises(error, match=message):
        run({"long": Call(time.sleep, (LONG,)), "wrong": Call(function, ())}, workers=2)
    assert time.monotonic() - started < LONG / 2
    assert multiprocessing.active_children() == []


def note_process(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(LONG)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    folder = str(tmp_path)
    calls = {name: Call(note_process, (folder,)) for name in ("one", "two")}
    parent = multiprocessing.get_context("spawn").Process(target=run, args=(calls, 2))
    parent.start()
    workers: list[int] = []
    deadline = time.monotonic() + LONG
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = [int(path.name) for path in tmp_path.iterdir()]
        time.sleep(0.1)
    assert len(workers) == 2
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + LONG / 2
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
