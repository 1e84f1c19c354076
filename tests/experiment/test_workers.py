"""Parallel processes: results by key, and no waiting for the others once one has failed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
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
