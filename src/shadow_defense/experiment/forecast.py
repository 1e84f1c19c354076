"""How long a training will take, before it begins."""

from __future__ import annotations

import math

from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.costing import Cost


def training_seconds(scene: Scene, cost: Cost) -> float:
    """Of one whole federated training with a defense of this cost."""
    training = scene.config.training
    evaluations = math.ceil(training.rounds / training.evaluate_every)
    return (
        preparing_seconds(scene, cost)
        + training.rounds * round_seconds(scene, cost)
        + evaluations * cost.evaluation_seconds
    )


def preparing_seconds(scene: Scene, cost: Cost) -> float:
    """Of what a defense does with the public images, and all clients', before its first round."""
    return cost.start_seconds + cost.prepare_seconds * sum(len(client.train) for client in scene.dataset.clients)


def round_seconds(scene: Scene, cost: Cost) -> float:
    """Of all clients' local steps in one round."""
    training = scene.config.training
    return sum(
        training.steps(len(client.train), client.batch_size) * cost.step_seconds(client.batch_size)
        for client in scene.dataset.clients
    )
