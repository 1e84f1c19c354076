"""What a study's own tasks take, for its forecast."""

from __future__ import annotations

from shadow_defense.experiment.forecast import preparing_seconds, round_seconds
from shadow_defense.experiment.plans.comparison.costs import UNKNOWN, Costs
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.bounding import BATCH, MOST_COPIED, Bounding
from shadow_defense.experiment.tasks.predicting import Predicting
from shadow_defense.experiment.tasks.updating import Updating

REMOVER_STEP = 6e-5
"""Seconds of a step of the learned remover's training, a pixel of one image of its batch: two networks are trained."""


class StudyCosts(Costs):
    """Of trainings and attacks as a comparison's; of the rest by the same measurements."""

    def seconds(self, task: Task) -> float:
        if not isinstance(task, Updating | Predicting | Bounding):
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
        height, width = scene.dataset.image_size
        images = task.audited + MOST_COPIED
        protecting = images * (cost.prepare_seconds + cost.step_seconds(BATCH) / BATCH)
        return protecting + 2 * task.remover_steps * REMOVER_STEP * height * width
