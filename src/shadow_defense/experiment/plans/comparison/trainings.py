"""What the trainings of a comparison say: utility over the seeds, cost, privacy budget, measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.tables import as_record, summarise
from shadow_defense.metrics.confidence import paired_difference

UTILITY = ("f1_macro", "f1_micro", "accuracy", "auroc")
CLIENT_LOSS = "loss"

History = Sequence[Mapping[str, Any]]


class Trainings:
    """The finished trainings of a comparison as they are now: each is read once, however many tables name it."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self.columns = cache(self._columns)
        """By model, arm and reference: what the arm's trainings say, and how its utility differs; not to be changed."""
        self._histories = cache(self._read)

    def config(self, model: str) -> RunConfig:
        """The configuration of a model's run; of the first seed, since only the seed differs."""
        return self._comparison.scene(model, self._comparison.grid.seeds[0]).config

    def _columns(self, model: str, arm: str, reference: str) -> dict[str, Any]:
        histories = self._histories(model, arm)
        if not histories:
            nothing = dict.fromkeys(("utility", "utility_difference", "cost", "epsilon"))
            return {"seeds": 0, **nothing, "measured": {}}
        others = self._histories(model, reference)
        utility, difference = {}, {}
        for name in UTILITY:
            present, reached = _reached(histories, name), _reached(others, name)
            if present:
                utility[name] = summarise(list(present.values()))
                both = [seed for seed in present if seed in reached]
                if both and arm != reference:
                    pairs = ([values[seed] for seed in both] for values in (present, reached))
                    difference[name] = as_record(paired_difference(*pairs))
        measured = _measured(list(histories.values()))
        epsilon = measured.pop("epsilon_spent", None)
        cost = self._comparison.costs.cost_of(model, arm)
        parts = self.config(model).arms[arm].parts()
        delta = next((part.delta for part in parts.values() if hasattr(part, "delta")), None)
        return {
            "seeds": len(histories),
            "utility": utility,
            "utility_difference": difference or None,
            "cost": None
            if cost is None
            else {"time": cost.time_ratio, "memory": cost.memory_ratio, "prepare_seconds": cost.prepare_seconds},
            "epsilon": None if epsilon is None else {**(summarise(epsilon) or {}), "delta": delta},
            "measured": {name: sum(values) / len(values) for name, values in measured.items()},
        }

    def _read(self, model: str, arm: str) -> dict[int, History]:
        """By seed the finished trainings of an arm; none of what trains nothing, or is not in this model's grid."""
        scenes = {seed: self._comparison.scene(model, seed) for seed in self._comparison.grid.seeds}
        history = self._comparison.history
        found = {seed: history(scene, arm) for seed, scene in scenes.items() if arm in scene.config.arms}
        return {seed: history for seed, history in found.items() if history}


def _reached(histories: Mapping[int, History], name: str) -> dict[int, float]:
    """By seed, a measure of utility of the final model, where it exists."""
    values = {seed: history[-1].get("test", {}).get(name) for seed, history in histories.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _measured(histories: Sequence[History]) -> dict[str, list[float]]:
    """The defense's own measurements in the last round: for each seed the greatest epsilon, the mean of all else."""
    found: dict[str, list[float]] = {}
    for history in histories:
        clients = list(history[-1]["clients"].values())
        for name in dict.fromkeys(name for client in clients for name in client if name != CLIENT_LOSS):
            values = [client[name] for client in clients if client.get(name) is not None]
            found.setdefault(name, []).append(max(values) if name.startswith("epsilon") else sum(values) / len(values))
    return found
