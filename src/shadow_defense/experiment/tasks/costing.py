"""The task of a defense's cost: what it adds to a local step; defended and undefended steps take turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.base import Defense
from shadow_defense.experiment.provenance import peak_megabytes
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import cost_parts
from shadow_defense.experiment.tasks.measuring import (
    Measuring,
    local_step,
    median_seconds,
    seconds_of,
)
from shadow_defense.experiment.tasks.pretraining import generator_for_arm, load_arm_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.metrics.utility import evaluate

MEASURED_ROUNDS = 5
"""Rounds in which a defense is measured, from the first to the last at even distances: some search in early ones."""


@dataclass(frozen=True)
class StepCost:
    """One local step of one client: seconds without and with the defense.

    Attributes:
        defended: in the first round.
        mean: over the rounds of a training.
    """

    batch_size: int
    plain: float
    defended: float
    mean: float


@dataclass(frozen=True)
class Cost:
    """What a defense costs with one model.

    Attributes:
        steps: of the clients with the smallest and with the largest batch.
        prepare_seconds: once an image, before the first round.
        plain_memory, defended_memory: peak of the process's resident memory in megabytes.
        evaluation_seconds: one evaluation of the global model.
        start_seconds: what is measured of the public images, once a process, before the first image is protected.
    """

    steps: tuple[StepCost, ...]
    prepare_seconds: float
    plain_memory: float
    defended_memory: float
    evaluation_seconds: float
    start_seconds: float = 0.0

    @property
    def time_ratio(self) -> float:
        """Of a local epoch in batches of the largest size."""
        return self.steps[-1].defended / self.steps[-1].plain

    @property
    def memory_ratio(self) -> float:
        return self.defended_memory / self.plain_memory

    def step_seconds(self, batch_size: int) -> float:
        """Over a whole training, of the measured batch whose size is nearest."""
        return self._nearest(batch_size).mean

    def first_seconds(self, batch_size: int) -> float:
        """As :meth:`step_seconds`, in the first round."""
        return self._nearest(batch_size).defended

    def plain_seconds(self, batch_size: int) -> float:
        """As :meth:`step_seconds`, without the defense; larger batches take longer in proportion."""
        nearest = self._nearest(batch_size)
        return nearest.plain * max(1.0, batch_size / nearest.batch_size)

    def _nearest(self, batch_size: int) -> StepCost:
        return min(self.steps, key=lambda step: abs(step.batch_size - batch_size))


@dataclass(frozen=True, eq=False)
class Costing(Measuring[Cost]):
    """What an arm's defense costs."""

    scene: Scene
    arm: str

    kind = "cost"
    record = Cost

    def decided_by(self) -> Mapping[str, object]:
        return cost_parts(self.scene, self.arm)

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: cost"

    def needs(self) -> Sequence[Task]:
        return generator_for_arm(self.scene, self.arm)

    def measure(self, generator: Path) -> Cost:
        scene, arm = self.scene, self.arm
        clients = sorted(scene.dataset.clients, key=lambda client: client.batch_size)
        ends = [_one_batch(clients[0]), _one_batch(clients[-1])]
        loaded = load_arm_generator(scene, arm, generator)
        undefended = [local_step(scene, scene.reference, client, Defense()) for client in ends]
        before = [median_seconds(step) for step in undefended]
        plain_memory = peak_megabytes()
        defended, means, starts = [], [], []
        last = scene.config.training.rounds - 1
        later = [place * last // (MEASURED_ROUNDS - 1) for place in range(1, MEASURED_ROUNDS)]
        for client in ends:
            begun = time.perf_counter()
            defense = build_defense(scene, arm, loaded, client.name)
            step = local_step(scene, arm, client, defense)
            images = scene.dataset.normalisation.apply(client.train.unit_images())
            built = time.perf_counter()
            defense.prepare(images, client.train.sample_ids)
            prepared = (time.perf_counter() - built) / len(client.train)
            starts.append(time.perf_counter() - begun)
            defended.append(median_seconds(step))
            means.append((defended[-1] + sum(seconds_of(partial(step, round)) for round in later)) / MEASURED_ROUNDS)
        defended_memory = peak_megabytes()
        # On both sides of the defended steps: the machine's speed drifts.
        after = [median_seconds(step) for step in undefended]
        model = scene.new_model(scene.reference).to(scene.device)
        evaluated = seconds_of(partial(evaluate, model, scene.dataset))
        steps = tuple(
            StepCost(client.batch_size, (earlier + again) / 2, found, mean)
            for client, earlier, again, found, mean in zip(ends, before, after, defended, means, strict=True)
        )
        # What the first client waits for beside its own image: of the second it is there.
        start = max(0.0, starts[0] - prepared * len(ends[0].train))
        return Cost(steps, prepared, plain_memory, defended_memory, evaluated, start)


def _one_batch(client: ClientData) -> ClientData:
    count = min(client.batch_size, len(client.train))
    return replace(client, train=client.train.subset(range(count)), batch_size=count)
