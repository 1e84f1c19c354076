"""A scene with a store: the tasks that it takes, and what their results say."""

from __future__ import annotations

from functools import cached_property

from shadow_defense.config import RunConfig
from shadow_defense.experiment.described import rounds_of
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.images import Images
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.checking import check_scene
from shadow_defense.experiment.tasks.pretraining import Pretraining
from shadow_defense.experiment.tasks.removing import Removing
from shadow_defense.experiment.tasks.scoring import Score, Scoring
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.report.records.run import Round


class Trial(Scene):
    """Every arm trained, every attack tried on every arm and scored, and what an attacker has without looking.

    Attributes:
        store: where the results lie.
    """

    def __init__(self, config: RunConfig, store: Store, images: Images | None = None) -> None:
        super().__init__(config, images)
        self.store = store

    def varied(self, config: RunConfig) -> Trial:
        """The trial of another configuration, on the same images where they are the same."""
        same = (config.data, config.seed) == (self.config.data, self.config.seed)
        return Trial(config, self.store, self.images if same else None)

    def check(self) -> None:
        """Raise what a task would raise after hours: its model, its attacked clients, its engine."""
        engine = engine_named(self.config.engine)
        engine.check()
        check_scene(self)
        engine.check_scene(self)

    def tasks(self) -> list[Task]:
        """What has to be computed; what it needs goes without saying."""
        return [*self.trainings.values(), *self.scorings]

    @cached_property
    def pretraining(self) -> Pretraining:
        return Pretraining(self)

    @cached_property
    def trainings(self) -> dict[str, Task]:
        """By arm; they keep the updates that the attacks ask for."""
        engine = engine_named(self.config.engine)
        return {arm: Training(self, arm, engine, self.kept) for arm in self.config.arms}

    def attacking(self, job: Job, *, randomised: bool = False) -> Attacking:
        return Attacking(self, job, self.trainings[job.arm], randomised)

    @cached_property
    def scorings(self) -> list[Scoring]:
        """For every attack, then for the mean image on the updates of the first arm."""
        reference, attacks = self.trainings[self.reference], [self.attacking(job) for job in self.jobs()]
        guessed = [attack for attack in attacks if attack.job.arm == self.reference]
        return [
            *(Scoring(attack, reference) for attack in attacks),
            *(Scoring(attack, reference, mean_image=True) for attack in guessed),
        ]

    @cached_property
    def worst_cases(self) -> list[Scoring]:
        """For every attacked client of every arm that protects once: its protected images, handed to removers.

        None where others made the draws, or an average of clients is all that was attacked.
        """
        reference, clients = self.trainings[self.reference], dict.fromkeys(job.client for job in self.jobs())
        return [
            Scoring(Removing.of(self, arm, client, self.trainings[arm]), reference)
            for arm, settings in self.config.arms.items()
            if settings.kind().draws_once and self.trainings[arm].given is None and not self.shows_averages
            for client in clients
        ]

    @cached_property
    def scorings_with_control(self) -> list[Scoring]:
        """Those, and for every attack on the first arm the same on noise of the update's norms."""
        reference, jobs = self.trainings[self.reference], [job for job in self.jobs() if job.arm == self.reference]
        return [*self.scorings, *(Scoring(self.attacking(job, randomised=True), reference) for job in jobs)]

    def scores(self, *, control: bool = False) -> list[Score]:
        """Of what is scored by now; ``control``: of the random update too."""
        scorings = self.scorings_with_control if control else self.scorings
        return [scoring.load(self.store) for scoring in scorings if self.store.has(scoring)]

    def history(self, arm: str) -> tuple[Round, ...]:
        """What was measured in each round of a training; none of one that is not finished."""
        return self.history_of(self.trainings[arm])

    def history_of(self, training: Task) -> tuple[Round, ...]:
        """As :meth:`history`, of a training of this trial or another."""
        place = self.store.place(training)
        return rounds_of(place) if training.is_done(place) else ()
