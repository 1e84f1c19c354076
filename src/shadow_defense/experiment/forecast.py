"""How long a training will take, before it begins."""

from __future__ import annotations

import math

from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.costing import Cost


def local_steps(samples: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps of a client in one round.

    >>> local_steps(9, 4, 2)
    6
    """
    return epochs * math.ceil(samples / batch_size)


def training_seconds(scene: Scene, cost: Cost) -> float:
    """Of one whole federated training with a defense of this cost."""
    training, clients = scene.config.training, scene.dataset.clients
    round_seconds = sum(
        local_steps(len(client.train), client.batch_size, training.local_epochs) * cost.step_seconds(client.batch_size)
        for client in clients
    )
    evaluations = math.ceil(training.rounds / training.evaluate_every)
    prepared = cost.prepare_seconds * sum(len(client.train) for client in clients)
    return training.rounds * round_seconds + evaluations * cost.evaluation_seconds + prepared


def duration_text(seconds: float) -> str:
    """As in a sentence.

    >>> duration_text(40.0), duration_text(700.0), duration_text(9000.0)
    ('less than a minute', 'about 12 minutes', 'about 2.5 hours')
    """
    if seconds < 60:
        return "less than a minute"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"
