"""The engines that can carry a federated training, by name."""

from __future__ import annotations

from functools import partial

from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.training import Engine, train_in_process
from shadow_defense.experiment.tasks.training_place import TrainingPlace
from shadow_defense.progress import Progress


def _check_flower() -> None:
    # Imported here, as below: Flower is an optional extra.
    from shadow_defense.federated.flower.simulation import check_simulation

    check_simulation()


def _train_in_flower(place: TrainingPlace, progress: Progress, *, secure: bool = False) -> None:
    from shadow_defense.experiment.flower_apps import train_arm_in_simulation

    train_arm_in_simulation(place, progress, secure=secure)


def _check_averages(scene: Scene) -> None:
    for attack in scene.config.attacks:
        scene.check_attack_on_averages(attack)


ENGINES: dict[str, Engine] = {
    "in-process": Engine(train_in_process),
    "flower-simulation": Engine(_train_in_flower, _check_flower, arms_at_once=False),
    "flower-secure-aggregation": Engine(
        partial(_train_in_flower, secure=True), _check_flower, _check_averages, arms_at_once=False
    ),
}


def engine_named(name: str) -> Engine:
    """The engine of that name. Raises :class:`ConfigError` where there is none."""
    if name not in ENGINES:
        raise ConfigError(unknown_name("engine", name, ENGINES))
    return ENGINES[name]
