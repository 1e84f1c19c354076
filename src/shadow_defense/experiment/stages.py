"""The stages by name, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shadow_defense.experiment.attacking import attack_stage
from shadow_defense.experiment.evaluating import evaluate_stage, report_stage
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.training import pretrain_stage, train_stage
from shadow_defense.progress import Progress

STAGES: dict[str, Callable[[Run, Progress], Any]] = {
    "pretrain": pretrain_stage,
    "train": train_stage,
    "attack": attack_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
}
