"""A run's numbers as a logger gets them, and the three loggers as they are called."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from shadow_defense.errors import ConfigError, RunError
from shadow_defense.experiment.loggers import measurements, to_mlflow, to_tensorboard, to_wandb
from shadow_defense.experiment.results import Results
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.run import RunRecord


def test_every_round_and_every_score_has_a_name_of_its_own(record: RunRecord) -> None:
    told = list(measurements(record))
    assert len({(name, round) for name, _, round in told}) == len(told)
    found = {(name, round): value for name, value, round in told}
    for name, arm in record.arms.items():
        for entry in arm.history:
            assert found[f"{name}/loss", entry.round + 1] == entry.loss
            for client, numbers in entry.clients.items():
                assert found[f"{name}/{client}/loss", entry.round + 1] == numbers["loss"]
    attacked = [table for table in record.tables if table.round is not None]
    assert attacked
    for table in attacked:
        for row in table.rows:
            assert found[f"{row.arm}/{table.attack}/psnr_whole", table.round] == row.metrics["psnr_whole"].mean


def test_loggers_are_called_as_their_packages_want(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    mlflow: Any = ModuleType("mlflow")
    mlflow.active_run = lambda: None
    mlflow.start_run = lambda: SimpleNamespace(info=SimpleNamespace(run_id="a run"))
    mlflow.log_metric = lambda key, value, step=None, run_id=None: calls.append((key, value, step, run_id))
    wandb: Any = ModuleType("wandb")
    wandb.run, wandb.init = None, lambda: SimpleNamespace(log=calls.append)
    tensorboard: Any = ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            calls.append(log_dir)

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            calls.append((tag, scalar_value, global_step))

        def flush(self) -> None: ...

    tensorboard.SummaryWriter = SummaryWriter
    for name, module in (("mlflow", mlflow), ("wandb", wandb), ("torch.utils.tensorboard", tensorboard)):
        monkeypatch.setitem(sys.modules, name, module)
    for on_measurement in (to_mlflow(), to_wandb(), to_tensorboard(tmp_path)):
        on_measurement("shadow/loss", 0.5, 2)
    once = ("shadow/loss", 0.5, 2)
    assert calls == [str(tmp_path), (*once, "a run"), {"shadow/loss": 0.5, "round": 2}, once]


@pytest.mark.parametrize("logger", [to_mlflow, to_wandb, lambda: to_tensorboard("runs")])
def test_a_missing_package_is_named(logger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="is not installed: pip install"):
        logger()


def test_what_has_no_rounds_is_told_in_one_line(comparison: ComparisonRecord) -> None:
    with pytest.raises(RunError, match="nothing else has rounds"):
        Results(comparison, Path("report.html")).log_to(lambda name, value, round: None)
