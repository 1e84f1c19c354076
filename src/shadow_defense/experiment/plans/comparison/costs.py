"""What a comparison's defenses and attacks cost: for its tables, and for the forecast of time and disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.forecast import training_seconds
from shadow_defense.experiment.plans.comparison.grid import Grid
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.costing import Cost, Costing
from shadow_defense.experiment.tasks.pretraining import Pretraining, generator_file
from shadow_defense.experiment.tasks.timing import AttackTiming, GeneratorTiming
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.experiment.trial import Trial
from shadow_defense.experiment.work import Workers
from shadow_defense.progress import Progress

UNKNOWN = 60.0
"""Seconds of a task whose cost could not be measured: some number has to stand in the sum."""

ATTACK_START = 1.0
"""Seconds that an attack takes beside its steps: reading the update, building the model, writing the images."""

SCORING = 0.2
"""Seconds of scoring one reconstruction."""


class Costs:
    """What defenses and attacks cost with each model, measured with the first seed."""

    def __init__(self, grid: Grid, store: Store, workers: Workers, trial: Callable[[str, int], Trial]) -> None:
        self._grid, self._store, self._workers, self._trial = grid, store, workers, trial
        self._points = grid.points()
        self._attack_steps: dict[tuple[str, str], AttackTiming] = {}
        self._model_bytes: dict[tuple[str, str], int] = {}
        self.cost_of = cache(self._cost_of)
        """By model and arm: measured at the first strength of its family with that model; None for ablations."""

    def measure(self, waiting: Sequence[Task], progress: Progress) -> dict[str, str]:
        """Measure every defense that was not measured before, and what of the ``waiting`` tasks is an attack.

        Returns the one-line error of each defense whose cost could not be measured.
        """
        costings = self.costings()
        for task in waiting:
            if isinstance(task, Attacking) and _attacked(task) not in self._attack_steps:
                self._attack_steps[_attacked(task)] = AttackTiming(task.scene, task.job.attack)
        pretrained = {timing.key: timing for timing in map(_timing_of, waiting) if timing is not None}
        outcome = carry_out(
            [*costings.values(), *self._attack_steps.values(), *pretrained.values()],
            self._store,
            self._workers,
            progress,
            name="measuring what defenses and attacks cost",
            isolate=True,
        )
        failed = {task.name: error for task, error in outcome.failures.items()}
        # What is wrong with an attack its own tasks say; its cost is needed for the forecast alone.
        return {label: failed[task.name] for label, task in costings.items() if task.name in failed}

    def costings(self) -> dict[str, Costing]:
        """What is measured of the defenses, each by what it is in words."""
        return {
            f"{model}, {arm}: cost": Costing(self._first(model), arm)
            for model in self._grid.models
            for arm in self._first_arms(model).values()
        }

    def _cost_of(self, model: str, arm: str) -> Cost | None:
        if arm not in self._points:
            return None
        costing = Costing(self._first(model), self._first_arms(model).get(self._points[arm].family, arm))
        return costing.load(self._store) if self._store.has(costing) else None

    def seconds(self, task: Task) -> float:
        """Of one process that computes the task, roughly."""
        if isinstance(task, Attacking):
            step = self._attack_steps.get(_attacked(task))
            if step is None or not self._store.has(step):
                return UNKNOWN
            return ATTACK_START + task.steps() * step.load(self._store).step_seconds
        if (timing := _timing_of(task)) is not None:
            known = self._store.has(timing)
            return task.steps() * timing.load(self._store).step_seconds if known else UNKNOWN
        if not isinstance(task, Training):
            return SCORING
        cost = self.cost_with(task.scene, task.arm)
        return UNKNOWN if cost is None else training_seconds(task.scene, cost)

    def cost_with(self, scene: Scene, arm: str) -> Cost | None:
        """What an arm costs in a scene: an ablation about what its whole does; else what no defense does."""
        seed = scene.config.seed
        model = next(name for name in self._grid.models if self._trial(name, seed).config is scene.config)
        measured = arm if arm in self._points else str(self._grid.ablations)
        return self.cost_of(model, measured) or self.cost_of(model, scene.reference)

    def bytes_of(self, task: Task) -> int:
        """What a training will leave on disk; before pre-training nothing is known of a generator's size."""
        if not isinstance(task, Training):
            return 0
        generator = generator_file(task.scene, self._store)
        size = generator.stat().st_size if task.needs() and generator.exists() else 0
        config = task.scene.config
        # A model is as large with every seed, and dear to build where a defense measures what goes before it.
        like = config.model.model_dump_json(), config.arms[task.arm].model_dump_json()
        if like not in self._model_bytes:
            self._model_bytes[like] = model_bytes(task.scene, task.arm)
        return training_bytes(task.scene, self._model_bytes[like], size)

    def _first(self, model: str) -> Trial:
        return self._trial(model, self._grid.seeds[0])

    def _first_arms(self, model: str) -> dict[str, str]:
        """The first arm of each family that is compared with the model."""
        first: dict[str, str] = {}
        for arm in self._grid.arms(model):
            if arm in self._points:
                first.setdefault(self._points[arm].family, arm)
        return first


def _attacked(task: Attacking) -> tuple[str, str]:
    """By what a step's time is told: the attack and the model, whatever the seed."""
    return task.job.attack, task.scene.config.model.model_dump_json()


def _timing_of(task: Task) -> GeneratorTiming | None:
    """What measures a generator's pre-training; None for other tasks, and where a file is copied."""
    if not isinstance(task, Pretraining) or task.scene.config.generator.path is not None:
        return None
    return GeneratorTiming(task.scene)


def model_bytes(scene: Scene, arm: str) -> int:
    """Of an arm's model and what its defense puts before it."""
    return sum(tensor.numel() * tensor.element_size() for tensor in scene.new_model(arm).state_dict().values())


def training_bytes(scene: Scene, one_model: int, generator: int) -> int:
    """What one training leaves on disk: kept rounds, the last state, and each client's generator where it has one."""
    kept = sum(1 + len(clients) for clients in scene.kept.values())
    return one_model * (kept + 1) + generator * len(scene.dataset.clients)


def check_disk(folder: Path, needed: int) -> None:
    """Raise :class:`RunError` when ``needed`` bytes are more than what is free where ``folder`` is to lie."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise RunError(
            f"the comparison would write {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: choose "
            "another folder with --out, or compare fewer seeds, defenses, clients or rounds"
        )
