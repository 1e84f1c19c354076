"""Parts of a run, carried out in the test's own process."""

from __future__ import annotations

from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scheduler import Workers, carry_out
from shadow_defense.experiment.tasks.training import TrainingPlace


def train_arm(run: Run, arm: str) -> None:
    """Train one arm, as the stage `train` does with all."""
    run.name_training(arm)
    carry_out([run.training(arm)], run.store, Workers(0, run.config.threads))


def written(run: Run, arm: str) -> TrainingPlace:
    """An arm's training in the run's own folder, in place of one in its store."""
    place = TrainingPlace(run, arm, run.arm_folder(arm), run.generator_path.parent, run.kept())
    place.write()
    return place
