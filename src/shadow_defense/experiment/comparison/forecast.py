"""How long a comparison will take and how much it will write, from measured costs."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from shadow_defense.errors import RunError
from shadow_defense.experiment.attacking import Job
from shadow_defense.experiment.comparison.cells import GridRun
from shadow_defense.experiment.comparison.costs import Cost

ATTACK_START = 1.0
"""Seconds that an attack takes beside its steps: reading the update, building the model, writing the images."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of one process's work, and bytes on disk, for what is still to be done."""

    seconds: float
    bytes: int


def local_steps(samples: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps of a client in one round.

    >>> local_steps(9, 4, 2)
    6
    """
    return epochs * math.ceil(samples / batch_size)


def training_seconds(run: GridRun, cost: Cost) -> float:
    """Of one whole federated training with a defense of this cost."""
    training = run.config.training
    clients = run.dataset.clients
    round_seconds = sum(
        local_steps(len(client.train), client.batch_size, training.local_epochs) * cost.step_seconds(client.batch_size)
        for client in clients
    )
    evaluations = math.ceil(training.rounds / training.evaluate_every)
    prepared = cost.prepare_seconds * sum(len(client.train) for client in clients)
    return training.rounds * round_seconds + evaluations * cost.evaluation_seconds + prepared


def attack_seconds(run: GridRun, job: Job, step_seconds: float) -> float:
    """Of one attack, of which one step was measured."""
    return ATTACK_START + run.config.attacks[job.attack].build().steps() * step_seconds


def training_bytes(run: GridRun, model: nn.Module, generator_bytes: int) -> int:
    """What one training leaves on disk: kept rounds, the last state, and each client's generator where it has one."""
    model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    kept = sum(1 + len(clients) for clients in run.kept().values())
    return model_bytes * (kept + 1) + generator_bytes * len(run.dataset.clients)


def check_disk(folder: Path, needed: int) -> None:
    """Raise :class:`RunError` when ``needed`` bytes are more than what is free where ``folder`` lies."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"the comparison would write {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: choose "
            "another folder with --out, or compare fewer seeds, defenses, clients or rounds"
        )


def duration_text(seconds: float) -> str:
    """As in a sentence.

    >>> duration_text(40.0), duration_text(700.0), duration_text(9000.0)
    ('less than a minute', 'about 12 minutes', 'about 2.5 hours')
    """
    if seconds < 60:
        return "less than a minute"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"
