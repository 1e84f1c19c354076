"""A comparison: every defense through the same training and the same attacks, for each model and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.experiment.folder import check_folder, open_folder
from shadow_defense.experiment.plans.comparison.costs import Costs, check_disk
from shadow_defense.experiment.plans.comparison.grid import Grid
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.scheduler import carry_out, missing
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.checking import CHECKING, check_defense
from shadow_defense.experiment.tasks.pretraining import generator_file
from shadow_defense.experiment.tasks.scoring import Score, Scoring
from shadow_defense.experiment.trial import Trial
from shadow_defense.experiment.work import Workers
from shadow_defense.progress import Progress, duration
from shadow_defense.report.kit.formatting import counted


class Comparison:
    """A grid and the folder of its results.

    Attributes:
        kind: of the folder; a study of another kind says here, in ``new_trial`` and in ``tasks_of`` what it is.
        costs: what defenses and attacks cost.
        failures: the one-line error of each task that failed in this run of the command, by what it was to find out.
    """

    kind = "comparison"

    def __init__(self, folder: Path, grid: Grid) -> None:
        check_folder(folder, self.kind, f"{self.kind}.yaml")
        self.folder, self.grid, self.store = folder, grid, Store(folder)
        self.failures: dict[str, str] = {}
        self.workers = Workers(grid.workers, grid.threads)
        self._trials: dict[tuple[str, int], Trial] = {}
        self.costs = Costs(grid, self.store, self.workers, self.trial)

    def run(self, progress: Progress | None = None) -> None:
        """Compute what is not there yet; what a kill interrupts goes on from its last whole round.

        Raises:
            ShadowDefenseError: before any training, for what no result could be computed with.
        """
        progress = progress or Progress()
        self.compute(self.prepared(progress), progress)

    def compute(self, waiting: Sequence[Task], progress: Progress) -> None:
        """Compute what :meth:`prepared` says is waiting."""
        if waiting:
            self._check_disk()
            self._train_and_attack(waiting, progress)

    def prepared(self, progress: Progress) -> list[Task]:
        """Check everything, train the first seed's generators, measure what all costs; returns what is waiting.

        Raises:
            ShadowDefenseError: for what no result could be computed with.
        """
        with progress.during(CHECKING):
            self.check()
        open_folder(self.folder, self.kind, self.grid.model_dump(mode="json"), may_change=True)
        self._check_disk()
        self._pretrain(progress)
        for model, trial in self.first_trials().items():
            self._check_arms(model, trial, generator=True)
        waiting = missing(self.tasks(), self.store)
        self.failures.update(self.costs.measure(waiting, progress))
        return waiting

    def tasks(self) -> list[Task]:
        """All that has to be computed; what it needs goes without saying."""
        return [task for _, trial in self.trials() for task in self.tasks_of(trial)]

    def tasks_of(self, trial: Trial) -> list[Task]:
        """Trainings and scores, the control's too."""
        return [*trial.trainings.values(), *trial.scorings_with_control]

    def federation_of(self, trial: Trial) -> Scene:
        """Whose clients are trained."""
        return trial

    def new_trial(self, config: RunConfig, same: Trial | None) -> Trial:
        """The trial of a configuration; ``same``: one on the same images."""
        return Trial(config, self.store) if same is None else same.varied(config)

    def trials(self) -> Iterator[tuple[str, Trial]]:
        """Seed by seed, so that a stopped comparison has whole seeds; with the model's name."""
        for seed in self.grid.seeds:
            for model in self.grid.models:
                if seed in self.grid.seeds_of(model):
                    yield model, self.trial(model, seed)

    def first_trials(self) -> dict[str, Trial]:
        """By model, with the first seed."""
        return {model: self.trial(model, self.grid.seeds[0]) for model in self.grid.models}

    def trial(self, model: str, seed: int) -> Trial:
        """Of one model and one seed, with all defenses as arms."""
        if (model, seed) not in self._trials:
            config = self.grid.run_config(model, seed).with_absolute_paths()
            same = next((trial for (_, other), trial in self._trials.items() if other == seed), None)
            self._trials[model, seed] = self.new_trial(config, same)
        return self._trials[model, seed]

    def check(self) -> None:
        """Raise what would stop a task before hours of others; defenses that need a generator are checked later."""
        for model, trial in self.first_trials().items():
            trial.check()
            self._check_arms(model, trial, generator=False)

    def _check_arms(self, model: str, trial: Trial, *, generator: bool) -> None:
        for arm, settings in trial.config.arms.items():
            if settings.kind().needs_generator is generator:
                try:
                    check_defense(trial, arm, generator_file(trial, self.store))
                except ShadowDefenseError as error:
                    raise type(error)(f"{arm} with {model}: {error}{self._without(model, arm)}") from error

    def _without(self, model: str, arm: str) -> str:
        """How a pair is left out; nothing for what all others are compared with, and for ablations."""
        point = self.grid.points().get(arm)
        if point is None or point.family == next(iter(self.grid.defenses)):
            return ""
        return f"; or leave the pair out: leave_out: [{{model: {model}, defense: {point.family}, reason: ...}}]"

    def _pretrain(self, progress: Progress) -> None:
        """The first seed's generators, which checks and measurements need; the others are needs of what uses them."""
        wanted: dict[Task, str] = {
            trial.pretraining: model for model, trial in self.first_trials().items() if trial.config.needs_generator
        }
        name = f"pre-training {counted(len(missing(list(wanted), self.store)), 'shadow generator')}, steps"
        failed = carry_out(list(wanted), self.store, self.workers, progress, name=name, isolate=True).failures
        for task, error in failed.items():
            raise RunError(f"the shadow generator for {wanted[task]} could not be trained: {error}")

    def _check_disk(self) -> None:
        trainings = [training for _, trial in self.trials() for training in trial.trainings.values()]
        check_disk(self.folder, sum(self.costs.bytes_of(task) for task in missing(trainings, self.store)))

    def _train_and_attack(self, waiting: Sequence[Task], progress: Progress) -> None:
        cells = sum(not isinstance(task, Scoring) for task in waiting)
        seconds = sum(map(self.costs.seconds, waiting))
        count = self.workers.at_once(len(waiting))
        name = f"{counted(cells, 'cell')}, about {duration(seconds / count)} on {counted(count, 'worker')}; seconds"
        outcome = carry_out(
            waiting, self.store, self.workers, progress, name=name, weight=self.costs.seconds, isolate=True
        )
        failed = {task.name: error for task, error in outcome.failures.items()}
        for label, task in self.labelled():
            if task.name in failed:
                self.failures[label] = failed[task.name]

    def labelled(self) -> Iterator[tuple[str, Task]]:
        """Every task, with what it is in words; identical settings may share one."""
        for model, trial in self.trials():
            for task in self.tasks_of(trial):
                # What the mean image is scored on fails under its own name.
                if not (isinstance(task, Scoring) and task.mean_image):
                    for part in (*task.needs(), task):
                        yield f"{model}, {part.about}", part

    def scores(self) -> dict[str, list[Score]]:
        """What is scored by now, of all seeds, by model."""
        found: dict[str, list[Score]] = {model: [] for model in self.grid.models}
        for model, trial in self.trials():
            found[model] += trial.scores(control=True)
        return found

    def finished(self) -> list[Task]:
        """What is there, and what was measured of costs."""
        return [task for task in (*self.tasks(), *self.costs.costings().values()) if self.store.has(task)]
