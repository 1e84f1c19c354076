"""What a study's own tasks take, for its forecast."""

from __future__ import annotations

from collections.abc import Sequence

from shadow_defense.attacks.removers.copied import BATCH, MOST_COPIED
from shadow_defense.experiment.forecast import preparing_seconds, round_seconds
from shadow_defense.experiment.plans.comparison.costs import UNKNOWN, Costs
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.bounding import Bounding, Breaking
from shadow_defense.experiment.tasks.costing import Cost
from shadow_defense.experiment.tasks.planting import Planting
from shadow_defense.experiment.tasks.predicting import Predicting
from shadow_defense.experiment.tasks.reading import Reading
from shadow_defense.experiment.tasks.timing import RemoverTiming
from shadow_defense.experiment.tasks.training import Central, public_federation
from shadow_defense.experiment.tasks.updating import Updating
from shadow_defense.progress import Progress
from shadow_defense.protection.directions import EPOCHS

CHOOSING = 30.0
"""Seconds in which a worst case measures public images, tries the linear removers, and chooses one for each image."""


class StudyCosts(Costs):
    """Of trainings and attacks as a comparison's; of the rest by the same measurements, and a remover's step."""

    def measure(self, waiting: Sequence[Task], progress: Progress) -> dict[str, str]:
        found = super().measure(waiting, progress)
        bounds = (task for task in waiting if isinstance(task, Bounding))
        removers = {timing.key: timing for timing in (RemoverTiming(task.scene) for task in bounds)}
        name = "measuring a remover's step"
        carry_out(list(removers.values()), self._store, self._workers, progress, name=name, isolate=True)
        return found

    def seconds(self, task: Task) -> float:
        if isinstance(task, Central):
            cost = self.cost_with(task.scene, task.arm)
            return UNKNOWN if cost is None else task.scene.config.training.rounds * _on_public(task.scene, cost)
        if isinstance(task, Reading):
            cost = self.cost_with(task.scene, task.scene.reference)
            return UNKNOWN if cost is None else EPOCHS * _on_public(task.scene, cost)
        if isinstance(task, Breaking):
            return CHOOSING + self._removing(task)
        if not isinstance(task, Updating | Predicting | Bounding | Planting):
            return super().seconds(task)
        arm = task.training.arm if isinstance(task, Predicting) else task.arm
        scene = task.training.scene if isinstance(task, Predicting) else task.scene
        cost = self.cost_with(scene, arm)
        if cost is None:
            return UNKNOWN
        if isinstance(task, Predicting):
            return cost.evaluation_seconds
        if isinstance(task, Updating):
            return len(scene.kept) * (preparing_seconds(scene, cost) + round_seconds(scene, cost))
        if isinstance(task, Planting):
            return task.steps() * (cost.prepare_seconds + task.looks * cost.step_seconds(1))
        images = task.audited + MOST_COPIED
        protecting = cost.start_seconds + images * (cost.prepare_seconds + cost.first_seconds(BATCH) / BATCH)
        return CHOOSING + protecting + self._removing(task)

    def _removing(self, task: Breaking | Bounding) -> float:
        step = RemoverTiming(task.scene)
        return task.steps() * step.load(self._store).step_seconds if self._store.has(step) else UNKNOWN


def _on_public(scene: Scene, cost: Cost) -> float:
    """Seconds of an undefended epoch on the public images."""
    (client,) = public_federation(scene).clients
    return scene.config.training.steps(len(client.train), client.batch_size) * cost.plain_seconds(client.batch_size)
