from __future__ import annotations

import io

import pytest
from rich.console import Console

from shadow_defense.cli import progress
from shadow_defense.cli.progress import BarProgress


class Clock:
    """Seconds as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def lines(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> list[str]:
    """What a task of four steps prints that takes a step at 59 s and is asked for a sign of life each half minute."""
    clock, written = Clock(monkeypatch), io.StringIO()
    bars = BarProgress(Console(file=written, force_terminal=terminal, width=100))
    task = bars.start("training [arm]", 4)
    for seconds in range(0, 151, 30):
        clock.now = float(seconds)
        if seconds == 90:
            task.advance(note="loss 1.0")
        bars.beat()
    task.finish()
    bars.beat()
    return written.getvalue().splitlines()


def test_minutes_of_work_give_a_sign_of_life_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the first step is done, and with the time left as soon as it can be told."""
    assert lines(monkeypatch, terminal=False) == [
        "  training [arm] 0 of 4, 60 s",
        "  training [arm] 1 of 4, 2 min, about 6 min left loss 1.0",
        "  training [arm] 2 min",
    ]


def test_a_bar_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in lines(monkeypatch, terminal=True) if " of 4" in line]


def test_a_step_of_minutes_shows_its_bar_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(monkeypatch), io.StringIO()
    bars = BarProgress(Console(file=written, force_terminal=True, width=100))
    with bars.during("checking images"):
        bars.beat()
        assert not [task for task in bars._bars.tasks if task.visible]
        clock.now = 3.0
        bars.beat()
        assert [task.description for task in bars._bars.tasks if task.visible] == ["checking images"]
        (late,) = bars._tasks
    assert not bars._bars.tasks and "checking images" not in written.getvalue()
    late.beat()  # of the thread that gives signs of life, which had it in hand as it ended
