"""A study and its folder: trainings, what is made of protected images, and attacks on updates of stored models."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.plans.comparison.costs import Costs
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.evidence.costs import StudyCosts
from shadow_defense.experiment.plans.evidence.reading import Study
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.scheduler import missing
from shadow_defense.experiment.store import RecordTask
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.bounding import Bound, Bounding
from shadow_defense.experiment.tasks.planting import Planting
from shadow_defense.experiment.tasks.predicting import Predicted, Predicting
from shadow_defense.experiment.tasks.reading import Reading
from shadow_defense.experiment.tasks.training import Central
from shadow_defense.experiment.trial import Trial
from shadow_defense.experiment.victims import VictimTrial
from shadow_defense.metrics.contrasts import within_seeds
from shadow_defense.metrics.intervals import share_interval
from shadow_defense.progress import Progress
from shadow_defense.report.records.evidence import (
    PUBLIC_ALONE,
    READING_ALONE,
    Left,
)

RING_AGAIN = 5.0
"""Seconds after which time that is up is said once more: what is raised in a finaliser is swallowed."""


@dataclass(frozen=True)
class Forecast:
    """What is still to be computed: how many tasks of each kind, and their seconds of one process."""

    tasks: dict[str, int]
    seconds: dict[str, float]
    processes: int


class TimeUpError(KeyboardInterrupt):
    """The time that was given to this piece of a study is over: what is interrupted goes on in the next."""


class Evidence(Comparison):
    """A study and the folder of its results."""

    kind = "evidence"
    grid: Study

    def __init__(self, folder: Path, study: Study) -> None:
        super().__init__(folder, study)
        # Of the federation's batches, not of victims'.
        self.costs: Costs = StudyCosts(study, self.store, self.workers, self._federation)

    def _federation(self, model: str, seed: int) -> Trial:
        return base_of(self.trial(model, seed))

    def new_trial(self, config: RunConfig, same: Trial | None) -> Trial:
        base = super().new_trial(config, None if same is None else base_of(same))
        once = frozenset(arm for arm, settings in config.arms.items() if settings.kind().draws_once)
        return VictimTrial(base, self.grid.victims, frozenset() if self.grid.attack_all else once)

    def is_drawn_once(self, model: str, arm: str) -> bool:
        """Whether an arm's images are drawn once, so that its worst case bounds all attacks."""
        return self.first_trials()[model].config.arms[arm].kind().draws_once

    def federation_of(self, trial: Trial) -> Scene:
        return base_of(trial)

    def tasks(self) -> list[Task]:
        """Model by model the worst cases, which decide most in minutes; what trainings are worth; the attacks.

        Of each seed by seed, so that every piece has something to say. An arm that its worst case has decided about is
        not attacked; before worst cases are there, all count.
        """
        found: list[Task] = []
        for model in self.grid.models:
            trials = [self.trial(model, seed) for seed in self.grid.seeds_of(model)]
            decided = self.decided(model)
            found += [bound for (name, _), bound in self.bounds.items() if name == model]
            found += [task for trial in trials for task in self.worth_of(trial)]
            found += [task for trial in trials for task in trial.scorings_with_control if task.job.arm not in decided]
        return found

    def decided(self, model: str) -> frozenset[str]:
        """The arms whose worst case says by itself that they leave too much; not the first, beside which others are."""
        if self.grid.attack_all:
            return frozenset()
        arms = list(self.first_trials()[model].config.arms)[1:]
        return frozenset(arm for arm in arms if (left := self.worst_case(model, arm)) is not None and left.too_much)

    def tasks_of(self, trial: Trial) -> list[Task]:
        """What trainings are worth, and scores; the trainings themselves are needed for both."""
        return [*self.worth_of(trial), *trial.scorings_with_control]

    def worth_of(self, trial: Trial) -> list[RecordTask[Predicted]]:
        """What every model says of the test images, those of the public images alone last."""
        return [*predictings(trial).values(), *controls(trial).values()]

    def labelled(self) -> Iterator[tuple[str, Task]]:
        yield from ((f"{model}, {task.about}", task) for (model, _), task in self.bounds.items())
        yield from super().labelled()

    @cached_property
    def bounds(self) -> dict[tuple[str, str], Bounding | Planting]:
        """By model and arm, of the first seed: images are many there, and no model is needed for most.

        What is drawn once is the same for all models, and audited once; so is what a malicious server reads, which
        sends a model of its own.
        """
        audited, steps, looks = self.grid.audited, self.grid.remover_steps, self.grid.training.rounds
        found: dict[tuple[str, str], Bounding | Planting] = {}
        once: dict[str, Bounding | Planting] = {}
        for model, trial in self.first_trials().items():
            for arm, settings in trial.config.arms.items():
                kind = settings.kind()
                if settings.on_images_alone:
                    own = Bounding(base_of(trial), arm, audited, steps)
                    found[model, arm] = once.setdefault(arm, own) if kind.draws_once else own
                elif not kind.searches:
                    found[model, arm] = once.setdefault(arm, Planting(base_of(trial), arm, audited, looks))
        return found

    def bound(self, model: str, arm: str) -> Bound | None:
        """The worst case of an arm, where it is there."""
        bounding = self.bounds.get((model, arm))
        return bounding.load(self.store) if bounding is not None and self.store.has(bounding) else None

    def worst_case(self, model: str, arm: str) -> Left | None:
        """What an arm's worst case leaves, where it is there and counts."""
        bound = self.bound(model, arm)
        if bound is None:
            return None
        once = self.is_drawn_once(model, arm)
        return left_by(bound, self.grid.seeds[0], self.bounds[model, arm].by, once=once)

    def run_for(
        self, seconds: float | None, tell: Callable[[Forecast], None], progress: Progress | None = None
    ) -> bool:
        """Forecast, :meth:`run`, for so long at most; returns whether it came to the end. Errors as there.

        Args:
            seconds: None: to the end.
            tell: what to do with the forecast, before anything else is computed.
        """
        try:
            with stopped_after(seconds):
                waiting = self.prepared(progress or Progress())
                tell(self.forecast_of(waiting))
                # First what decides whether the rest is needed.
                first = [task for task in waiting if isinstance(task, Bounding | Planting)]
                self.compute(first, progress or Progress())
                self.compute(self.remaining(), progress or Progress())
        except TimeUpError:
            return False
        return True

    def forecast(self, progress: Progress | None = None) -> Forecast:
        """What the rest takes, by what defenses' and attacks' steps cost on this machine, measured where they were not.

        The first seed's generators are trained first, where defenses need them. Errors as in :meth:`run`.
        """
        return self.forecast_of(self.prepared(progress or Progress()))

    def forecast_of(self, waiting: Sequence[Task]) -> Forecast:
        """As :meth:`forecast`, of what :meth:`prepared` gave."""
        kinds: dict[str, list[Task]] = {}
        for task in waiting:
            kinds.setdefault(task.kind, []).append(task)
        return Forecast(
            {kind: len(tasks) for kind, tasks in kinds.items()},
            {kind: sum(map(self.costs.seconds, tasks)) for kind, tasks in kinds.items()},
            self.workers.at_once(max(1, len(waiting))),
        )

    def remaining(self) -> list[Task]:
        """What is not computed yet."""
        return missing(self.tasks(), self.store)


def base_of(trial: Trial) -> Trial:
    """The federation behind a trial of a study."""
    assert isinstance(trial, VictimTrial)
    return trial.base


def predictings(trial: Trial) -> dict[str, Predicting]:
    """By arm what its training says of the test images."""
    assert isinstance(trial, VictimTrial)
    return {arm: Predicting(training) for arm, training in trial.whole_trainings.items()}


def controls(trial: Trial) -> dict[str, RecordTask[Predicted]]:
    """By arm what models say of the test images that know the public images with all their labels, and no client's.

    Where an arm protects once, a network like the one that protection reads with too. None where the public images are
    of another source, whose labels may mean other things.
    """
    base = base_of(trial)
    if base.config.data.public_path is not None or base.config.data.public_source is not None:
        return {}
    found: dict[str, RecordTask[Predicted]] = {
        PUBLIC_ALONE: Predicting(Central(base, base.reference, engine_named("in-process")))
    }
    if any(settings.kind().draws_once for settings in base.config.arms.values()):
        found[READING_ALONE] = Reading(base)
    return found


@contextmanager
def stopped_after(seconds: float | None) -> Iterator[None]:
    """Raise :class:`TimeUpError` in the main thread after so long; None: never.

    Like an interrupt from the keyboard: files are whole or absent, and the same command goes on.
    """
    if seconds is None:
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, RING_AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def left_by(bound: Bound, seed: int, by: str, *, once: bool) -> Left | None:
    """What is left of the images of ``seed``; None where a planted break was not broken.

    Args:
        once: whether images are drawn once, so that no attack on any round can leave more.
    """
    if bound.withheld:
        return None
    pairs = zip(bound.closest["psnr"], bound.mean_image["psnr"], strict=True)
    above = within_seeds({seed: [own - mean for own, mean in pairs]})
    return Left(
        by=by,
        above=above,
        closest=above,
        ssim=within_seeds({seed: bound.closest["ssim"]}),
        bounded=once,
        found=share_interval(bound.found),
        gallery=bound.gallery,
    )
