"""A grid small enough for a test, and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shadow_defense.experiment.plans.comparison.grid import Grid
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.costing import Cost, Costing, StepCost
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.experiment.tasks.timing import StepTime
from shadow_defense.experiment.trial import Trial

TINY: dict[str, Any] = {
    "title": "tiny",
    "seeds": [0, 1],
    "data": {
        "source": "faces",
        "image_size": 16,
        "public_fraction": 0.3,
        "split": {"kind": "sizes", "sizes": [1, 1, 4], "batch_sizes": [1, 1, 4]},
    },
    "generator": {"z_dim": 8, "width": 8, "steps": 4, "save_every": 4, "batch_size": 8},
    "training": {"rounds": 2, "learning_rate": 0.05},
    "metrics": {"lpips": None},
    "models": {"convnet": {"model": {"name": "convnet", "normalisation": "group", "width": 8}}},
    "defenses": {
        "fedavg": {"defense": "none"},
        "noise": {"defense": "noise", "sweep": {"preset": ["weak", "strong"]}},
        "shadow": {"defense": "shadow", "options": {"latent_iterations": 3}, "sweep": {"strength": [0.19, 1.0]}},
    },
    "attacks": {"inverting-gradients": {"options": {"iterations": 4}, "longest_client": 1, "rounds": [1, 2]}},
}

COST = Cost((StepCost(1, 0.1, 0.2, 0.2), StepCost(8, 0.4, 2.0, 1.5)), 0.5, 100, 150, 1.0)


def grid(**changes: Any) -> Grid:
    return Grid.model_validate({**TINY, **changes})


def the_scene(folder: Path, **changes: Any) -> Trial:
    return Comparison(folder, grid(**changes)).trial("convnet", 0)


def scorings_of(comparison: Comparison) -> list[Scoring]:
    """Of all models and seeds, the controls too."""
    return [scoring for _, trial in comparison.trials() for scoring in trial.scorings_with_control]


def fixed_cost(_: object, task: Task, *__: object) -> Cost | StepTime:
    """In place of what would be measured in a process of its own."""
    return COST if isinstance(task, Costing) else StepTime(0.5)
