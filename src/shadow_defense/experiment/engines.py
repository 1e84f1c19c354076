"""The engines that can carry a federated training, by name."""

from __future__ import annotations

from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.training import Engine, TrainingPlace, train_in_process
from shadow_defense.progress import Progress


def _always_installed() -> None:
    """The engine needs nothing but this package."""


def _any_scene(scene: Scene) -> None:
    """The engine carries every scene."""


def _check_flower_simulation() -> None:
    # Imported here, as below: Flower is an optional extra.
    from shadow_defense.federated.flower.simulation import check_simulation

    check_simulation()


def _train_in_flower_simulation(place: TrainingPlace, progress: Progress) -> None:
    from shadow_defense.experiment.flower_apps import train_arm_in_simulation

    train_arm_in_simulation(place, progress)


def _check_averages(scene: Scene) -> None:
    for attack in scene.config.attacks:
        scene.check_attack_on_averages(attack)


def _train_with_secure_aggregation(place: TrainingPlace, progress: Progress) -> None:
    from shadow_defense.experiment.flower_apps import train_arm_in_simulation

    train_arm_in_simulation(place, progress, secure=True)


ENGINES: dict[str, Engine] = {
    "in-process": Engine(train_in_process, _always_installed, _any_scene),
    "flower-simulation": Engine(_train_in_flower_simulation, _check_flower_simulation, _any_scene, arms_at_once=False),
    "flower-secure-aggregation": Engine(
        _train_with_secure_aggregation, _check_flower_simulation, _check_averages, arms_at_once=False
    ),
}


def engine_named(name: str) -> Engine:
    """The engine of that name. Raises :class:`ConfigError` where there is none."""
    if name not in ENGINES:
        raise ConfigError(unknown_name("engine", name, ENGINES))
    return ENGINES[name]
