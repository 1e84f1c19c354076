"""The engines that can carry a federated training, by name."""

from __future__ import annotations

from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.training import IN_PROCESS, Engine
from shadow_defense.progress import Progress


def _check_flower_simulation() -> None:
    # Imported here, as below: Flower is an optional extra.
    from shadow_defense.federated.flower.simulation import check_simulation

    check_simulation()


def _train_in_flower_simulation(run: Run, arm: str, progress: Progress) -> None:
    from shadow_defense.experiment.flower_apps import train_arm_in_simulation

    train_arm_in_simulation(run, arm, progress)


def _check_averages(run: Run) -> None:
    for attack in run.config.attacks:
        run.check_attack_on_averages(attack)


def _train_with_secure_aggregation(run: Run, arm: str, progress: Progress) -> None:
    from shadow_defense.experiment.flower_apps import train_arm_in_simulation

    train_arm_in_simulation(run, arm, progress, secure=True)


ENGINES: dict[str, Engine] = {
    "in-process": IN_PROCESS,
    "flower-simulation": Engine(_train_in_flower_simulation, _check_flower_simulation, arms_at_once=False),
    "flower-secure-aggregation": Engine(
        _train_with_secure_aggregation, _check_flower_simulation, arms_at_once=False, check_run=_check_averages
    ),
}


def engine_named(name: str) -> Engine:
    """The engine of that name, installed. Raises :class:`ConfigError` or :class:`RunError` where it is not."""
    if name not in ENGINES:
        raise ConfigError(unknown_name("engine", name, ENGINES))
    ENGINES[name].check()
    return ENGINES[name]
