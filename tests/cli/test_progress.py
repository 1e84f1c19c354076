from __future__ import annotations

import io

import pytest
from rich.console import Console

from shadow_defense.cli import progress
from shadow_defense.cli.progress import BarProgress


def lines(monkeypatch: pytest.MonkeyPatch, times: list[float], *, terminal: bool) -> list[str]:
    """What a task of three steps prints that is begun, advanced and finished at these seconds."""
    clock = iter(times)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    written = io.StringIO()
    task = BarProgress(Console(file=written, force_terminal=terminal, width=100)).start("training [arm]", 3)
    task.advance(note="loss 1.0")
    task.advance(note="loss 0.5")
    task.finish()
    return written.getvalue().splitlines()


def test_minutes_of_work_give_a_sign_of_life_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, [0, 59, 61, 70], terminal=False)
    assert told == ["  training [arm] 2 of 3, 61 s loss 0.5", "  training [arm] 70 s"]


def test_a_bar_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in lines(monkeypatch, [0, 59, 61, 70], terminal=True) if "2 of 3" in line]
