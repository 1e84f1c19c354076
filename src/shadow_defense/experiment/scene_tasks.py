"""The tasks of a whole scene: every arm trained, every attack tried and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.experiment.tasks.training import Training, check_scene
from shadow_defense.report.records.scores import MEAN_IMAGE


def check_whole(scene: Scene) -> None:
    """Raise what a task of the scene would raise after hours: its model, its attacked clients, its engine."""
    engine = engine_named(scene.config.engine)
    engine.check()
    check_scene(scene)
    engine.check_scene(scene)


def trainings_of(scene: Scene) -> dict[str, Training]:
    """By arm; they keep the updates that the scene's attacks ask for."""
    engine, kept = engine_named(scene.config.engine), scene.kept()
    return {arm: Training(scene, arm, engine, kept) for arm in scene.config.arms}


def scorings_of(scene: Scene, trainings: Mapping[str, Task]) -> Iterator[Scoring]:
    """For every attack, and after those of the first arm for the mean image on the same updates."""
    reference = trainings[scene.reference]
    for job in scene.jobs():
        attack = Attacking(scene, job, trainings[job.arm])
        yield Scoring(scene, job, job.arm, attack, reference)
        if job.arm == scene.reference:
            yield Scoring(scene, job, MEAN_IMAGE, attack, reference)
