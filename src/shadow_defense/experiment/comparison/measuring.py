"""The costs of a comparison's defenses and attacks: measured once, then used for its tables and its forecast."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.comparison.cells import Cell, GridRun, key_of
from shadow_defense.experiment.comparison.costs import Cost, cost_from, in_own_process, measure_attack, measure_cost
from shadow_defense.experiment.comparison.forecast import attack_seconds, training_seconds
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.comparison.isolation import KILLED, failure_line
from shadow_defense.files import read_json, write_json
from shadow_defense.progress import Progress

UNKNOWN = 60.0
"""Seconds of a cell whose cost could not be measured: some number has to stand in the sum."""


class Measurements:
    """What defenses and attacks cost with each model.

    Attributes:
        costs: by model and arm, the first of its family with that model; missing where it could not be measured.
        attack_steps: seconds of one step by model and attack; missing likewise.
        failures: the one-line error of each defense whose cost could not be measured.
    """

    def __init__(self, folder: Path, grid: Grid, run_of: Callable[[str, int], GridRun]) -> None:
        self._folder, self._grid, self._run_of = folder, grid, run_of
        self.costs: dict[tuple[str, str], Cost] = {}
        self.attack_steps: dict[tuple[str, str], float] = {}
        self.failures: dict[str, str] = {}

    def measure(self, attacks: Collection[tuple[str, str]], progress: Progress) -> None:
        """Measure every defense that was not measured before, and these pairs of model and attack."""
        wanted = [(model, arm) for model in self._grid.models for arm in self._first(model).values()]
        task = progress.start("measuring what defenses and attacks cost", len(wanted) + len(attacks))
        for model, arm in wanted:
            self._measure_defense(model, arm)
            task.advance()
        for model, attack in attacks:
            self._measure_attack(model, attack)
            task.advance()
        task.finish()

    def cost_of(self, model: str, arm: str) -> Cost | None:
        """Of an arm, measured at the first strength of its family with that model; None for ablations."""
        point = self._grid.points().get(arm)
        return None if point is None else self.costs.get((model, self._first(model).get(point.family, arm)))

    def seconds(self, cell: Cell) -> float:
        """Of one process that computes the cell, roughly."""
        run = self._run_of(cell.model, cell.seed)
        if cell.job is not None:
            step = self.attack_steps.get((cell.model, cell.job.attack))
            return UNKNOWN if step is None else attack_seconds(run, cell.job, step)
        # An ablation takes about what its whole takes.
        arm = cell.arm if cell.arm in self._grid.points() else str(self._grid.ablations)
        cost = self.cost_of(cell.model, arm) or self.cost_of(cell.model, run.reference)
        return UNKNOWN if cost is None else training_seconds(run, cost)

    def _first(self, model: str) -> dict[str, str]:
        """The first arm of each family that is compared with the model."""
        points, first = self._grid.points(), dict[str, str]()
        for arm in self._grid.arms(model):
            if arm in points:
                first.setdefault(points[arm].family, arm)
        return first

    def _measure_defense(self, model: str, arm: str) -> None:
        seed = self._grid.seeds[0]
        run = self._run_of(model, seed)
        path = run.cell("cost", run.cost_key(arm)).with_suffix(".json")
        cost = _stored(path)
        name = f"{model}, {arm}: cost"
        try:
            if cost is None:
                cost = in_own_process(measure_cost, self._folder, self._grid, model, seed, arm)
                write_json(path, asdict(cost))
            self.costs[model, arm] = cost
        except BrokenProcessPool:
            self.failures[name] = KILLED
        except Exception as error:
            self.failures[name] = failure_line(error, self._folder / "traces" / f"{key_of(name)}.txt")

    def _measure_attack(self, model: str, attack: str) -> None:
        try:
            self.attack_steps[model, attack] = in_own_process(
                measure_attack, self._folder, self._grid, model, self._grid.seeds[0], attack
            )
        except Exception:
            # Needed for the forecast alone: what is wrong with the attack, its cells say, and the others go on.
            return


def _stored(path: Path) -> Cost | None:
    try:
        return cost_from(read_json(path))
    except (RunError, KeyError, TypeError):
        return None
