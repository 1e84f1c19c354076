"""Parts of a run, carried out in the test's own process."""

from __future__ import annotations

from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.tasks.training_place import TrainingPlace
from shadow_defense.experiment.work import Workers


def train_arm(run: Run, arm: str) -> None:
    """Train one arm, as the stage `train` does with all."""
    run.name_training(arm)
    carry_out([run.trainings[arm]], run.store, Workers(0, run.config.threads))


def written(run: Run, arm: str) -> TrainingPlace:
    """An arm's training in the run's own folder, in place of one in its store."""
    place = run.place(arm)
    place.write()
    return place
