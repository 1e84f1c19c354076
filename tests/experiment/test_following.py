"""A logger hears of every round once, soon after it has ended, and cannot end the run."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shadow_defense.config import config_from
from shadow_defense.errors import ConfigError, RunError
from shadow_defense.experiment import following as module
from shadow_defense.experiment.following import following
from shadow_defense.experiment.loggers import logger_named
from shadow_defense.experiment.run import Run
from shadow_defense.federated.training_folder import write_journal

TOLD: list[tuple[str, float, int]] = []


def on_measurement(name: str, value: float, round: int) -> None:
    TOLD.append((name, value, round))


@pytest.fixture
def run(tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(module, "EVERY", 0.01)
    TOLD.clear()
    return Run(tmp_path / "out", config_from(tiny))


def rounds(run: Run, arm: str, count: int) -> None:
    """So many rounds of an arm have ended."""
    history = [
        {"round": round, "loss": 1.0 / (round + 1), "clients": {"site-1": {"loss": 0.5}}, "seconds": 1.0}
        for round in range(count)
    ]
    write_journal(run.arm_folder(arm), count, history)


def heard(count: int) -> bool:
    """Whether so many numbers are told, within five seconds."""
    end = time.monotonic() + 5
    while len(TOLD) < count and time.monotonic() < end:
        time.sleep(0.01)
    return len(TOLD) == count


def test_each_round_is_told_while_the_next_one_is_trained(run: Run) -> None:
    rounds(run, "shadow", 1)
    with following(run, on_measurement):
        rounds(run, "fedavg", 1)
        assert heard(2)
        assert TOLD == [("fedavg/loss", 1.0, 1), ("fedavg/site-1/loss", 0.5, 1)]
        rounds(run, "shadow", 2)
        assert heard(4)
        rounds(run, "fedavg", 3)
    # The first round of `shadow` had ended before; the last two of `fedavg` are told though the block ends at once.
    found = {arm: [round for name, _, round in TOLD if name == f"{arm}/loss"] for arm in ("fedavg", "shadow")}
    assert found == {"fedavg": [1, 2, 3], "shadow": [2]}


def test_a_logger_that_fails_is_told_of_at_the_end(run: Run) -> None:
    def failing(name: str, value: float, round: int) -> None:
        raise OSError("the server is down")

    ended = False
    told_of = pytest.raises(RunError, match=r"the logger failed \(OSError: the server is down\) and was told no more")
    with told_of, following(run, failing):
        rounds(run, "fedavg", 1)
        time.sleep(0.05)
        ended = True
    assert ended


def test_an_error_of_the_run_is_not_hidden_by_its_logger(run: Run) -> None:
    with pytest.raises(KeyError), following(run, on_measurement):
        raise KeyError("the run's own")


def test_a_logger_that_lies_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_logger_of_mine.py").write_text("def log(name, value, round):\n    return round\n")
    assert logger_named("a_logger_of_mine:log")("loss", 1.0, 2) == 2  # type: ignore[func-returns-value]


def test_a_logger_by_its_name() -> None:
    assert logger_named("math:hypot") is math.hypot
    for given in ("tensorbord=logs", "tensorboard", "no.such.module:log", "math:pi"):
        with pytest.raises(ConfigError, match=f"--log {given}"):
            logger_named(given)
