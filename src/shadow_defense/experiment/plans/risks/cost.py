"""Risk 6: differential privacy and secure computation are expensive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.plans.risks.risk import NO_DEFENSE, Risk, Trials, changed, shadow_arm
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import cost_parts
from shadow_defense.experiment.tasks.measuring import Measuring, local_step, seconds_of
from shadow_defense.experiment.tasks.pretraining import generator_for_arm, load_arm_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.experiment.trial import Trial
from shadow_defense.federated.client import prepare_defense
from shadow_defense.federated.secure_sum import (
    WORD_BYTES,
    add_masks,
    from_fixed_point,
    pair_secrets,
    sum_masked,
    to_fixed_point,
)
from shadow_defense.metrics.confidence import Estimate, mean_interval
from shadow_defense.metrics.intervals import mean_ratio
from shadow_defense.report.records.risks import Finding, Row

PLAIN, DP, SHADOW, STORED, SECURE = "plain", "dp-sgd", "shadow", "shadow-later", "secure-sum"

IMAGES, BATCH_SIZE = 32, 8

REPETITIONS = 7

SUMMED_CLIENTS = 10


@dataclass(frozen=True)
class Times:
    """Seconds of local epochs by arm, and of the secure sum's masks, taken in turn.

    Attributes:
        preparing: of the defense before the first round, an image.
        adding: of the server's sum of masked vectors in a round.
        entries: numbers in an update.
    """

    epochs: Mapping[str, tuple[float, ...]]
    preparing: Mapping[str, float]
    adding: float
    entries: int


@dataclass(frozen=True, eq=False)
class Timing(Measuring[Times]):
    """The times of a scene with one client, epoch by epoch, in a process that does nothing else."""

    scene: Scene
    repetitions: int

    kind = "epoch-times"
    record = Times

    def decided_by(self) -> Mapping[str, object]:
        return {
            "code": code_hash(__name__),
            "repetitions": self.repetitions,
            "arms": [cost_parts(self.scene, arm) for arm in self.scene.config.arms],
        }

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: times of local epochs"

    def needs(self) -> Sequence[Task]:
        return generator_for_arm(self.scene, SHADOW)

    def measure(self, generator: Path) -> Times:
        scene = self.scene
        (client,) = scene.dataset.clients
        steps: dict[str, Callable[[int], object]] = {}
        preparing = {}
        for arm in scene.config.arms:
            defense = build_defense(scene, arm, load_arm_generator(scene, arm, generator), client.name)
            steps[arm] = local_step(scene, arm, client, defense)
            prepared = seconds_of(partial(prepare_defense, defense, client, scene.dataset.normalisation))
            preparing[arm] = prepared / len(client.train)
        entries = sum(tensor.numel() for tensor in scene.new_model(PLAIN).state_dict().values())
        steps[SECURE] = masking(entries)
        rounds = [
            {arm: seconds_of(partial(step, round)) for arm, step in steps.items()}
            for round in range(self.repetitions + 1)
        ]
        # The first epoch warms caches up.
        epochs = {arm: tuple(each[arm] for each in rounds[1:]) for arm in steps}
        return Times(epochs, preparing, seconds_of(adding(entries)), entries)


class TimedTrial(Trial):
    """Nothing is trained to an end or attacked in it: its epochs are timed."""

    def tasks(self) -> list[Task]:
        return [Timing(self, REPETITIONS)]


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
    rounds = REPETITIONS + 1
    batch = base.model.normalisation == "batch"
    config = changed(
        base,
        data={"split": {"kind": "sizes", "sizes": [IMAGES], "batch_sizes": [BATCH_SIZE]}},
        # Of several samples' gradients batch norm makes one: DP-SGD cannot be run on it.
        model={"normalisation": "group"} if batch else {},
        training={"rounds": rounds, "local_epochs": 1},
        arms={
            PLAIN: NO_DEFENSE,
            DP: DefenseSettings(defense="dp-sgd"),
            SHADOW: shadow_arm(base, shadow_rounds=rounds),
            STORED: shadow_arm(base, shadow_rounds=0),
        },
        attacks={},
    )
    return {"seconds": TimedTrial(config, store)}


def masking(entries: int) -> Callable[[int], object]:
    """What one of :data:`SUMMED_CLIENTS` clients does in a round: fixed point and one mask with each other client."""
    clients = [f"client-{index}" for index in range(SUMMED_CLIENTS)]
    secrets = pair_secrets(clients, 0)
    values = torch.linspace(-1, 1, entries, dtype=torch.float64)
    return lambda round: add_masks(to_fixed_point(values, len(clients)), clients[0], clients, secrets, round)


def adding(entries: int) -> Callable[[], object]:
    """What the server does in a round: the sum of all masked vectors, and back from fixed point."""
    words = to_fixed_point(torch.zeros(entries, dtype=torch.float64), SUMMED_CLIENTS)
    return lambda: from_fixed_point(sum_masked([words] * SUMMED_CLIENTS))


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["seconds"] for trials in seeds]
    return finding([Timing(trial, REPETITIONS).load(trial.store) for trial in found])


def finding(measured: Sequence[Times]) -> Finding:
    """From the times of each seed."""
    epochs = {arm: [value for times in measured for value in times.epochs[arm]] for arm in measured[0].epochs}
    epochs[SECURE] = [epoch + masks for epoch, masks in zip(epochs[PLAIN], epochs[SECURE], strict=True)]
    rows = [Row(PLAIN, {"ratio": Estimate(1.0, None, 1), "seconds": mean_interval(epochs[PLAIN])})]
    for arm in (DP, SECURE, SHADOW, STORED):
        values = {"ratio": mean_ratio(epochs[arm], epochs[PLAIN]), "seconds": mean_interval(epochs[arm])}
        if arm in (SHADOW, STORED):
            values["preparing"] = mean_interval([times.preparing[arm] for times in measured])
        rows.append(Row(arm, values))
    entries = float(measured[0].entries)
    facts = {
        "adding": math.fsum(times.adding for times in measured) / len(measured),
        "entries": entries,
        "bytes": entries * WORD_BYTES,
        "images": float(IMAGES),
        "batch_size": float(BATCH_SIZE),
        "summed clients": float(SUMMED_CLIENTS),
    }
    against = mean_ratio(epochs[DP], epochs[SHADOW])
    return Finding(
        value=rows[1].values["ratio"], nothing=1.0, rows=tuple(rows), more={"dp against shadow": against}, facts=facts
    )


RISK = Risk(
    6,
    "Differential privacy and secure computation protect at a high price in computation.",
    "Seconds of a local epoch with DP-SGD, with the masks of a secure sum, with Shadow and with nothing, measured in "
    "turn in one process.",
    trials,
    measure,
)
