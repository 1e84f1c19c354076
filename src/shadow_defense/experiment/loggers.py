"""A run's numbers for a logger: TensorBoard, MLflow, Weights & Biases, or any function."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shadow_defense.errors import ConfigError
from shadow_defense.report.records.run import RunRecord


class OnMeasurement(Protocol):
    """Takes one number: what it is, with slashes between its parts, and after which round (from 1)."""

    def __call__(self, name: str, value: float, round: int) -> None: ...


def measurements(record: RunRecord) -> Iterator[tuple[str, float, int]]:
    """``arm/loss``, ``arm/test/f1_macro``, ``arm/client/loss``; ``arm/attack/ssim_whole``, the mean of images."""
    for name, arm in record.arms.items():
        for entry in arm.history:
            parts = {"": {"loss": entry.loss}, "test/": entry.test, "validation/": entry.validation}
            parts |= {f"{client}/": numbers for client, numbers in entry.clients.items()}
            for part, numbers in parts.items():
                for measure, value in numbers.items():
                    if value is not None:
                        yield f"{name}/{part}{measure}", value, entry.round + 1
    for table in record.tables:
        for row in table.rows if table.round is not None else ():
            for measure, estimate in row.metrics.items():
                yield f"{row.arm}/{table.attack}/{measure}", estimate.mean, table.round or 0


def to_tensorboard(folder: str | Path) -> OnMeasurement:
    """Scalars in ``folder``, for ``tensorboard --logdir``. Raises :class:`ConfigError` where tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard") from error
    writer = SummaryWriter(str(folder))

    def on_measurement(name: str, value: float, round: int) -> None:
        writer.add_scalar(name, value, round)
        writer.flush()

    return on_measurement


def to_mlflow() -> OnMeasurement:
    """Metrics of MLflow's active run. Raises :class:`ConfigError` where mlflow is missing."""
    try:
        import mlflow
    except ImportError as error:
        raise _missing("mlflow") from error
    return lambda name, value, round: mlflow.log_metric(name, value, step=round)


def to_wandb() -> OnMeasurement:
    """Values of the run that ``wandb.init`` began, each beside its ``round``: W&B's own step only ever grows.

    Raises:
        ConfigError: where wandb is missing.
    """
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb") from error
    return lambda name, value, round: wandb.log({name: value, "round": round})


def _missing(package: str) -> ConfigError:
    return ConfigError(f"{package} is not installed: pip install {package}, or give another logger")
