"""The tasks of a cost: what a defense adds to a local step, and how long an attack's step takes.

Every figure comes from a fresh process that does nothing else, in which defended and undefended steps take turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.base import Defense
from shadow_defense.errors import RunError
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import attack_seed, observation_of
from shadow_defense.experiment.tasks.keys import attack_key, cost_key, deciding, start_key
from shadow_defense.experiment.tasks.pretraining import GENERATOR, Pretraining
from shadow_defense.experiment.tasks.training import build_defense, evaluation
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_json, write_json
from shadow_defense.generators.build import load_generator
from shadow_defense.progress import Progress
from shadow_defense.progress import Task as Steps
from shadow_defense.report.records.reading import read_record

COST = "cost.json"

Measured = TypeVar("Measured")

REPETITIONS = 3
LONG = 10.0
"""Seconds of a step from which one repetition has to do."""

MEASURED_ATTACK_STEPS = 4


@dataclass(frozen=True)
class StepCost:
    """One local step of one client: seconds without and with the defense."""

    batch_size: int
    plain: float
    defended: float


@dataclass(frozen=True)
class Cost:
    """What a defense costs with one model.

    Attributes:
        steps: of the clients with the smallest and with the largest batch.
        prepare_seconds: once an image, before the first round.
        plain_memory, defended_memory: peak of the process's resident memory in bytes; None where the system does
            not tell.
        evaluation_seconds: one evaluation of the global model.
    """

    steps: tuple[StepCost, ...]
    prepare_seconds: float
    plain_memory: int | None
    defended_memory: int | None
    evaluation_seconds: float

    @property
    def time_ratio(self) -> float:
        """Of a local epoch in batches of the largest size."""
        return self.steps[-1].defended / self.steps[-1].plain

    @property
    def memory_ratio(self) -> float | None:
        if self.plain_memory is None or self.defended_memory is None:
            return None
        return self.defended_memory / self.plain_memory

    def step_seconds(self, batch_size: int) -> float:
        """Of the measured batch whose size is nearest."""
        return min(self.steps, key=lambda step: abs(step.batch_size - batch_size)).defended


def peak_memory() -> int | None:
    """The most resident memory that this process had, in bytes; None outside Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class AttackStep:
    """Seconds of one step of an attack."""

    step_seconds: float


class _Measuring(Task):
    """A task that measures into one small file, in a new process with nothing beside it."""

    @property
    def alone(self) -> bool:
        return True

    def is_done(self, place: Path) -> bool:
        return (place / COST).is_file()

    def read(self, kind: type[Measured], store: Store) -> Measured:
        """What was measured. Raises :class:`RunError` where it is missing or damaged."""
        path, hint = store.place(self) / COST, "delete it to have it measured again"
        return read_record(kind, read_json(path, hint), str(path), hint)


@dataclass(frozen=True, eq=False)
class Costing(_Measuring):
    """What an arm's defense costs."""

    scene: Scene
    arm: str

    kind = "cost"

    @cached_property
    def key(self) -> str:
        return cost_key(self.scene, self.arm)

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: cost"

    def describe(self) -> Mapping[str, Any]:
        config = self.scene.config
        return {"defense": deciding(config.arms[self.arm]), "model": config.model.model_dump(mode="json")}

    def needs(self) -> Sequence[Task]:
        return [Pretraining(self.scene)] if self.scene.config.arms[self.arm].kind().needs_generator else []

    def compute(self, store: Store, progress: Progress) -> None:
        generator = store.place(Pretraining(self.scene)) / GENERATOR if self.needs() else None
        measured = in_own_process(measure_cost, self.scene, self.arm, generator)
        write_json(store.place(self) / COST, asdict(measured))

    def load(self, store: Store) -> Cost:
        """What was measured. Raises :class:`RunError` where it is missing or damaged."""
        return self.read(Cost, store)


@dataclass(frozen=True, eq=False)
class AttackCosting(_Measuring):
    """Seconds of one step of an attack on an undefended update of its first client."""

    scene: Scene
    attack: str

    kind = "attack-cost"

    @cached_property
    def key(self) -> str:
        return attack_key(self.scene, Job("", self.attack, 0, ""), start_key(self.scene), False)

    @property
    def about(self) -> str:
        return f"{self.attack}: cost of a step"

    def describe(self) -> Mapping[str, Any]:
        return {"attack": self.scene.config.attacks[self.attack].model_dump(mode="json")}

    def needs(self) -> Sequence[Task]:
        generator = "generator" in self.scene.config.attacks[self.attack].build().needs
        return [Pretraining(self.scene)] if generator else []

    def compute(self, store: Store, progress: Progress) -> None:
        generator = store.place(Pretraining(self.scene)) / GENERATOR
        seconds = in_own_process(measure_attack, self.scene, self.attack, generator)
        write_json(store.place(self) / COST, asdict(AttackStep(seconds)))

    def load(self, store: Store) -> float:
        """Seconds of a step. Raises :class:`RunError` where they are missing or damaged."""
        return self.read(AttackStep, store).step_seconds


def measure_cost(scene: Scene, arm: str, generator: Path | None) -> Cost:
    """To be called in a process of its own: the peak of memory never falls again."""
    torch.set_num_threads(scene.config.threads)
    clients = sorted(scene.dataset.clients, key=lambda client: client.batch_size)
    ends = [_one_batch(clients[0]), _one_batch(clients[-1])]
    loaded = None if generator is None else load_generator(generator)
    undefended = [local_step(scene, scene.reference, client, Defense()) for client in ends]
    before = [_timed(step) for step in undefended]
    plain_memory = peak_memory()
    defended = []
    for client in ends:
        defense = build_defense(scene, arm, loaded, client.name)
        images = scene.dataset.normalisation.apply(client.train.unit_images())
        prepared = seconds_of(partial(defense.prepare, images, client.train.sample_ids)) / len(client.train)
        defended.append(_timed(local_step(scene, arm, client, defense)))
    defended_memory = peak_memory()
    # On both sides of the defended steps: the machine's speed drifts.
    after = [_timed(step) for step in undefended]
    evaluated = seconds_of(partial(evaluation, scene, scene.new_model(scene.reference)))
    steps = tuple(
        StepCost(client.batch_size, (first + last) / 2, found)
        for client, first, last, found in zip(ends, before, after, defended, strict=True)
    )
    return Cost(steps, prepared, plain_memory, defended_memory, evaluated)


def _one_batch(client: ClientData) -> ClientData:
    count = min(client.batch_size, len(client.train))
    return replace(client, train=client.train.subset(range(count)), batch_size=count)


def local_step(scene: Scene, arm: str, client: ClientData, defense: Defense) -> Callable[..., ModelUpdate]:
    """A function that trains the client from the arm's first model for an epoch, as a round (0-based) does."""
    model = scene.new_model(arm)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    defense.check_model(model)
    settings = scene.config.training.model_copy(update={"local_epochs": 1})
    own = {name: state[name] for name in withheld_names(model, scene.config.arms[arm].share_bn)}

    def step(round: int = 0) -> ModelUpdate:
        return train_locally(
            model,
            state,
            client,
            defense,
            settings=settings,
            round=round,
            normalisation=scene.dataset.normalisation,
            loss_fn=settings.loss_function(),
            seed=scene.config.seed,
            kept=own,
        ).update

    return step


def seconds_of(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _timed(work: Callable[[], object]) -> float:
    """The median of some repetitions after one that warms caches up; one alone where it takes long."""
    first = seconds_of(work)
    return first if first > LONG else statistics.median(seconds_of(work) for _ in range(REPETITIONS))


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
        if self.steps > MEASURED_ATTACK_STEPS or self.times[-1] - self.times[0] > LONG:
            raise _EnoughError

    def seconds(self) -> float:
        """Of a whole attack step, without the first, which warms up."""
        if self.steps <= self._warm_up:
            return (self.times[-1] - self.times[0]) / max(self.steps, 1)
        return (self.times[-1] - self.times[1]) / (self.steps - self._warm_up)


def measure_attack(scene: Scene, attack: str, generator: Path) -> float:
    """Seconds of one step of an attack on an undefended update of its first client; in a process of its own."""
    torch.set_num_threads(scene.config.threads)
    client = scene.attacked_clients(attack)[0]
    job = Job(scene.reference, attack, 0, client.name)
    network = scene.new_model(scene.reference)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
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
        return watch.seconds()
    return (time.perf_counter() - watch.times[0]) / max(scene.config.attacks[attack].build().steps(), 1)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in a process that has done nothing else: this one, where a scheduler made it for the task."""
    if multiprocessing.parent_process() is not None:
        return function(*arguments)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise RunError("its process was killed, perhaps for lack of memory") from error
