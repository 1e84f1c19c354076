"""A run's numbers for a logger: TensorBoard, MLflow, Weights & Biases, or any function."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from shadow_defense.errors import ConfigError
from shadow_defense.registry import import_failure, imported, look_here
from shadow_defense.report.records.run import Round, RunRecord


class OnMeasurement(Protocol):
    """Takes one number: what it is, with slashes between its parts, and after which round (from 1)."""

    def __call__(self, name: str, value: float, round: int) -> None: ...


def measurements(record: RunRecord) -> Iterator[tuple[str, float, int]]:
    """``arm/loss``, ``arm/test/f1_macro``, ``arm/client/loss``; ``arm/attack/ssim_whole``, the mean of images."""
    for name, arm in record.arms.items():
        for entry in arm.history:
            yield from of_round(name, entry)
    for table in record.tables:
        for row in table.rows if table.round is not None else ():
            for measure, estimate in row.metrics.items():
                yield f"{row.arm}/{table.attack}/{measure}", estimate.mean, table.round or 0


def of_round(arm: str, entry: Round) -> Iterator[tuple[str, float, int]]:
    """What was measured in one round of an arm's training, as in :func:`measurements`."""
    parts = {"": {"loss": entry.loss}, "test/": entry.test, "validation/": entry.validation}
    parts |= {f"{client}/": numbers for client, numbers in entry.clients.items()}
    for part, numbers in parts.items():
        for measure, value in numbers.items():
            if value is not None:
                yield f"{arm}/{part}{measure}", value, entry.round + 1


def logger_named(given: str) -> OnMeasurement:
    """The logger of a command: ``tensorboard=FOLDER``, ``mlflow``, ``wandb``, or a function ``module:name``.

    Raises:
        ConfigError: for anything else, what cannot be imported, and a package that is missing.
    """
    name, _, folder = given.partition("=")
    if name == "tensorboard" and folder:
        return to_tensorboard(folder)
    if given in ("mlflow", "wandb"):
        return to_mlflow() if given == "mlflow" else to_wandb()
    if ":" not in given:
        raise ConfigError(f"--log {given}: expected tensorboard=FOLDER, mlflow, wandb or a function as module:name")
    look_here()
    try:
        found: OnMeasurement = imported(given)
    # Whatever a stranger's module raises.
    except Exception as error:
        raise ConfigError(f"--log {given} cannot be imported: {import_failure(error, given)}") from error
    if not callable(found):
        raise ConfigError(f"--log {given} is no function: expected one that takes name, value and round")
    return found


def to_tensorboard(folder: str | Path) -> OnMeasurement:
    """Scalars in ``folder``, for ``tensorboard --logdir``. Raises :class:`ConfigError` where tensorboard is missing."""
    writer = _installed("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def on_measurement(name: str, value: float, round: int) -> None:
        writer.add_scalar(name, value, round)
        writer.flush()

    return on_measurement


def to_mlflow() -> OnMeasurement:
    """Metrics of MLflow's active run, or a new one. Raises :class:`ConfigError` where mlflow is missing."""
    mlflow = _installed("mlflow")
    # Which run is active is a thread's own knowledge, and a training is followed by another thread.
    run = mlflow.active_run() or mlflow.start_run()
    return lambda name, value, round: mlflow.log_metric(name, value, step=round, run_id=run.info.run_id)


def to_wandb() -> OnMeasurement:
    """Values of the run that ``wandb.init`` began, or a new one, each beside its ``round``: W&B's own step only grows.

    Raises:
        ConfigError: where wandb is missing.
    """
    wandb = _installed("wandb")
    run = wandb.run or wandb.init()
    return lambda name, value, round: run.log({name: value, "round": round})


def _installed(module: str, package: str | None = None) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module
        raise ConfigError(f"{package} is not installed: pip install {package}, or give another logger") from error
