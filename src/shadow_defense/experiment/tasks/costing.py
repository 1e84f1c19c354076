"""The tasks of a cost: what a defense adds to a local step, and how long an attack's step takes.

Defended and undefended steps take turns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from shadow_defense.attacks.removers.learned import pairs_of_own_making, train_remover
from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.base import Defense
from shadow_defense.experiment.provenance import code_hash, peak_megabytes
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import attack_seed, observation_of
from shadow_defense.experiment.tasks.keys import (
    COST_CODE,
    attack_key,
    computed_on,
    cost_key,
    deciding,
    key_of,
    public_key,
    start_key,
)
from shadow_defense.experiment.tasks.measuring import (
    LONG,
    Measuring,
    local_step,
    median_seconds,
    seconds_of,
)
from shadow_defense.experiment.tasks.pretraining import generator_for_arm, generator_for_attack, load_arm_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.states import on_host
from shadow_defense.metrics.utility import evaluate
from shadow_defense.progress import Task as Steps
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening

MEASURED_STEPS = 4

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


@dataclass(frozen=True)
class AttackStep:
    """Seconds of one step of an attack, or of a remover's training."""

    step_seconds: float


@dataclass(frozen=True, eq=False)
class Costing(Measuring[Cost]):
    """What an arm's defense costs."""

    scene: Scene
    arm: str

    kind = "cost"
    record = Cost

    @cached_property
    def key(self) -> str:
        return cost_key(self.scene, self.arm)

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: cost"

    def describe(self) -> Mapping[str, object]:
        config = self.scene.config
        return {"defense": deciding(config.arms[self.arm]), "model": config.model.model_dump(mode="json")}

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


@dataclass(frozen=True, eq=False)
class AttackCosting(Measuring[AttackStep]):
    """Seconds of one step of an attack on an undefended update of its first client."""

    scene: Scene
    attack: str

    kind = "attack-cost"
    record = AttackStep

    @cached_property
    def key(self) -> str:
        return attack_key(self.scene, Job("", self.attack, 0, ""), start_key(self.scene), False)

    @property
    def about(self) -> str:
        return f"{self.attack}: cost of a step"

    def describe(self) -> Mapping[str, object]:
        return {"attack": self.scene.config.attacks[self.attack].model_dump(mode="json")}

    def needs(self) -> Sequence[Task]:
        return generator_for_attack(self.scene, self.attack)

    def measure(self, generator: Path) -> AttackStep:
        scene, attack = self.scene, self.attack
        client = scene.attacked_clients(attack)[0]
        job = Job(scene.reference, attack, 0, client.name)
        network = scene.new_model(scene.reference).to(scene.device)
        state = {name: tensor.clone() for name, tensor in on_host(network.state_dict()).items()}
        update = local_step(scene, scene.reference, client, Defense())()
        observation = observation_of(scene, job, network, state, update, generator)
        adaptive = scene.config.attacks[attack].adaptive
        # In place of the rounds before, which would take as long.
        earlier = [] if adaptive is None else [observation] * (adaptive.rounds - 1)
        observation = observation_of(scene, job, network, state, update, generator, earlier)
        watch = _Stopwatch()
        try:
            scene.config.attacks[attack].build().reconstruct(observation, seed=attack_seed(scene, job), task=watch)
        except _EnoughError:
            return AttackStep(watch.seconds())
        whole = scene.config.attacks[attack].build().steps()
        return AttackStep((time.perf_counter() - watch.times[0]) / max(whole, 1))


@dataclass(frozen=True, eq=False)
class RemoverCosting(Measuring[AttackStep]):
    """Seconds of one step of a learned remover's training on images like the scene's, under white noise."""

    scene: Scene

    kind = "remover-cost"
    record = AttackStep

    @cached_property
    def key(self) -> str:
        code = code_hash(*COST_CODE, "attacks/removers")
        return key_of(code, public_key(self.scene), *computed_on(self.scene))

    @property
    def about(self) -> str:
        return "learned remover: cost of a step"

    def describe(self) -> Mapping[str, object]:
        return {"public": len(self.scene.dataset.public)}

    def measure(self, generator: Path) -> AttackStep:
        public, classes = self.scene.dataset.public, self.scene.dataset.classes
        images = public.unit_images()
        texture = White(measure_whitening(images), 1.0)
        pairs = pairs_of_own_making(texture.protect, images, public.labels)
        first = LinearRemover(texture.whitening, texture.view())
        train = partial(train_remover, first, pairs, classes, seed=0, device=self.scene.device)
        # The first step warms caches up.
        train(steps=1)
        return AttackStep(seconds_of(partial(train, steps=MEASURED_STEPS)) / MEASURED_STEPS)


def _one_batch(client: ClientData) -> ClientData:
    count = min(client.batch_size, len(client.train))
    return replace(client, train=client.train.subset(range(count)), batch_size=count)


class _EnoughError(Exception):
    """Ends an attack that was started only to see how fast it is."""


class _Stopwatch(Steps):
    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self.steps = 0
        self._warm_up = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.times.append(time.perf_counter())
        self.steps += steps
        self._warm_up = self._warm_up or steps
        if self.steps > MEASURED_STEPS or self.times[-1] - self.times[0] > LONG:
            raise _EnoughError

    def seconds(self) -> float:
        """Of a whole attack step, without the first, which warms up."""
        if self.steps <= self._warm_up:
            return (self.times[-1] - self.times[0]) / max(self.steps, 1)
        return (self.times[-1] - self.times[1]) / (self.steps - self._warm_up)
