"""A comparison: every defense through the same training and the same attacks, for each model and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.experiment.described import rounds_of
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.plans.comparison.costs import Costs, check_disk, duration_text
from shadow_defense.experiment.plans.comparison.grid import Grid
from shadow_defense.experiment.plans.folder import check_folder, open_folder
from shadow_defense.experiment.scene import Scene, needs_generator, with_absolute_paths
from shadow_defense.experiment.scene_tasks import check_whole, trainings_of
from shadow_defense.experiment.scheduler import Workers, carry_out, missing
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.pretraining import GENERATOR, Pretraining
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.experiment.tasks.training import Training, build_defense
from shadow_defense.generators.build import load_generator
from shadow_defense.progress import Progress
from shadow_defense.report.records.run import Round
from shadow_defense.report.records.scores import MEAN_IMAGE, RANDOM_UPDATE

KIND = "comparison"


class Comparison:
    """A grid and the folder of its results.

    Attributes:
        costs: what defenses and attacks cost.
        failures: the one-line error of each task that failed in this run of the command, by what it was to find out.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        check_folder(folder, KIND)
        self.folder, self.grid, self.store = folder, grid, Store(folder)
        self.engine = engine_named(grid.engine)
        self.failures: dict[str, str] = {}
        self.workers = Workers(grid.workers, grid.threads)
        self.costs = Costs(grid, self.store, self.workers, self.scene)
        self._scenes: dict[tuple[str, int], Scene] = {}

    def run(self, progress: Progress | None = None) -> None:
        """Compute what is not there yet; what a kill interrupts goes on from its last whole round.

        Raises:
            ShadowDefenseError: before any training, for what no result could be computed with.
        """
        progress = progress or Progress()
        self.check()
        open_folder(self.folder, KIND, self.grid.model_dump(mode="json"), may_change=True)
        self._check_disk()
        self._pretrain(progress)
        for model in self.grid.models:
            self._check_arms(model, generator=True)
        waiting = missing([scoring for _, scoring in self.scorings()], self.store)
        self.failures.update(self.costs.measure(waiting, progress))
        if waiting or missing(self.trainings(), self.store):
            self._check_disk()
            self._train_and_attack(progress)

    def scenes(self) -> Iterator[tuple[str, int, Scene]]:
        """Seed by seed, so that a stopped comparison has whole seeds."""
        for seed in self.grid.seeds:
            for model in self.grid.models:
                yield model, seed, self.scene(model, seed)

    def scene(self, model: str, seed: int) -> Scene:
        """Of one model and one seed, with all defenses as arms."""
        if (model, seed) not in self._scenes:
            config = with_absolute_paths(self.grid.run_config(model, seed))
            same = next((scene for (_, other), scene in self._scenes.items() if other == seed), None)
            self._scenes[model, seed] = Scene(config) if same is None else same.varied(config)
        return self._scenes[model, seed]

    def training(self, scene: Scene, arm: str) -> Training:
        return Training(scene, arm, self.engine, scene.kept())

    def trainings(self) -> list[Task]:
        return [training for _, _, scene in self.scenes() for training in trainings_of(scene).values()]

    def scorings(self) -> Iterator[tuple[str, Scoring]]:
        """For each model and seed every attack on every arm, then the controls; with the model's name."""
        for model, _, scene in self.scenes():
            trainings, jobs = trainings_of(scene), scene.jobs()
            reference = trainings[scene.reference]
            for job in jobs:
                attack = Attacking(scene, job, trainings[job.arm])
                yield model, Scoring(scene, job, job.arm, attack, reference)
            for job in jobs:
                if job.arm == scene.reference:
                    attack = Attacking(scene, job, reference, randomised=True)
                    yield model, Scoring(scene, job, RANDOM_UPDATE, attack, reference)
                    plain = Attacking(scene, job, reference)
                    yield model, Scoring(scene, job, MEAN_IMAGE, plain, reference)

    def check(self) -> None:
        """Raise what would stop a task before hours of others; defenses that need a generator are checked later."""
        for model in self.grid.models:
            check_whole(self.scene(model, self.grid.seeds[0]))
            self._check_arms(model, generator=False)

    def _check_arms(self, model: str, *, generator: bool) -> None:
        scene = self.scene(model, self.grid.seeds[0])
        found = None
        if generator and needs_generator(scene):
            found = load_generator(self.store.place(Pretraining(scene)) / GENERATOR)
        for arm, settings in scene.config.arms.items():
            if settings.kind().needs_generator is generator:
                try:
                    build_defense(scene, arm, found, scene.dataset.clients[0].name).check_model(scene.new_model(arm))
                except ShadowDefenseError as error:
                    raise type(error)(f"{arm} with {model}: {error}{self._without(model, arm)}") from error

    def _without(self, model: str, arm: str) -> str:
        """How a pair is left out; nothing for what all others are compared with, and for ablations."""
        point = self.grid.points().get(arm)
        if point is None or point.family == next(iter(self.grid.defenses)):
            return ""
        return f"; or leave the pair out: leave_out: [{{model: {model}, defense: {point.family}, reason: ...}}]"

    def _pretrain(self, progress: Progress) -> None:
        wanted = {
            task.name: (task, f"{model}, seed {seed}")
            for model, seed, scene in self.scenes()
            if needs_generator(scene)
            for task in [Pretraining(scene)]
        }
        tasks = [task for task, _ in wanted.values()]
        name = f"pre-training {len(missing(tasks, self.store))} shadow generators, steps"
        failed = carry_out(tasks, self.store, self.workers, progress, name=name, isolate=True).failures
        for task, error in failed.items():
            raise RunError(f"the shadow generator for {wanted[task.name][1]}, could not be trained: {error}")

    def _check_disk(self) -> None:
        needed = sum(self.costs.bytes_of(task) for task in missing(self.trainings(), self.store))
        check_disk(self.folder, needed)

    def _train_and_attack(self, progress: Progress) -> None:
        tasks: Sequence[Task] = [*self.trainings(), *(scoring for _, scoring in self.scorings())]
        waiting = missing(tasks, self.store)
        cells = sum(not isinstance(task, Scoring) for task in waiting)
        seconds = sum(map(self.costs.seconds, waiting))
        count = self.workers.at_once(len(waiting))
        name = f"{cells} cells, {duration_text(seconds / count)} on {count} workers; seconds"
        outcome = carry_out(
            tasks, self.store, self.workers, progress, name=name, weight=self.costs.seconds, isolate=True
        )
        failed = {task.name: error for task, error in outcome.failures.items()}
        for label, task in self._labelled():
            if task.name in failed:
                self.failures[label] = failed[task.name]

    def _labelled(self) -> Iterator[tuple[str, Task]]:
        """Every training, attack and score, with what it is in words; identical settings may share one task."""
        for model, _, scene in self.scenes():
            for training in trainings_of(scene).values():
                yield self._label(model, training)
        for model, scoring in self.scorings():
            if scoring.arm != MEAN_IMAGE:
                yield self._label(model, scoring.attack)
                yield self._label(model, scoring)

    @staticmethod
    def _label(model: str, task: Task) -> tuple[str, Task]:
        return f"{model}, {task.about}", task

    def finished(self) -> list[Task]:
        """The trainings and scores that are there, and what was measured of costs."""
        tasks = [*self.trainings(), *self.costs.costings().values(), *(scoring for _, scoring in self.scorings())]
        return [task for task in tasks if self.store.has(task)]

    def history(self, scene: Scene, arm: str) -> tuple[Round, ...]:
        """What was measured in each round of a training; none of one that is not finished."""
        training = self.training(scene, arm)
        place = self.store.place(training)
        return rounds_of(place) if training.is_done(place) else ()
