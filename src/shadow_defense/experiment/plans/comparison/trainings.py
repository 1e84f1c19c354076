"""What the trainings of a comparison say, over its seeds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from shadow_defense.config import RunConfig
from shadow_defense.experiment.analysis import History, training_row
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.report.records.scores import BASELINES, Row

UTILITY = ("f1_macro", "f1_micro", "accuracy", "auroc")


class Trainings:
    """The finished trainings of a comparison as they are now: each is read once, however many tables name it."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self.row = cache(self._row)
        """By model, arm and reference: what the arm's trainings say, and how its utility differs."""
        self._histories = cache(self._read)

    def config(self, model: str) -> RunConfig:
        """The configuration of a model's run; of the first seed, since only the seed differs."""
        return self._comparison.scene(model, self._comparison.grid.seeds[0]).config

    def _row(self, model: str, arm: str, reference: str) -> Row:
        if arm in BASELINES:
            return Row(arm=arm, images=0, metrics={})
        settings = self.config(model).arms[arm]
        histories = self._histories(model, arm)
        row = training_row(arm, settings, histories, self._histories(model, reference), UTILITY)
        cost = self._comparison.costs.cost_of(model, arm) if histories else None
        if cost is None:
            return replace(row, share_bn=settings.share_bn)
        shown = {"time": cost.time_ratio, "memory": cost.memory_ratio, "prepare_seconds": cost.prepare_seconds}
        return replace(row, share_bn=settings.share_bn, cost=shown)

    def _read(self, model: str, arm: str) -> dict[int, History]:
        """By seed the finished trainings of an arm; none of what is not in this model's grid."""
        scenes = {seed: self._comparison.scene(model, seed) for seed in self._comparison.grid.seeds}
        history = self._comparison.history
        found = {seed: history(scene, arm) for seed, scene in scenes.items() if arm in scene.config.arms}
        return {seed: history for seed, history in found.items() if history}
