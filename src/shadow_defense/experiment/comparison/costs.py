"""What a defense costs, in time and memory against no defense, and how long each cell will take.

Every figure comes from a fresh process that does nothing else, in which defended and undefended steps take turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.base import Defense
from shadow_defense.experiment.attacking import Job, attack_seed, observation_of
from shadow_defense.experiment.comparison.cells import GridRun, grid_run
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.training import build_defense, evaluation, load_run_generator
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.progress import Task

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


def cost_from(record: dict[str, Any]) -> Cost:
    """From what ``dataclasses.asdict`` gave."""
    return Cost(**{**record, "steps": tuple(StepCost(**step) for step in record["steps"])})


def peak_memory() -> int | None:
    """The most resident memory that this process had, in bytes; None outside Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure_cost(folder: Path, grid: Grid, model: str, seed: int, arm: str) -> Cost:
    """To be called in a process of its own: the peak of memory never falls again."""
    run = grid_run(folder, grid, model, seed)
    torch.set_num_threads(run.config.threads)
    clients = sorted(run.dataset.clients, key=lambda client: client.batch_size)
    ends = [_one_batch(clients[0]), _one_batch(clients[-1])]
    generator = load_run_generator(run)
    undefended = [local_step(run, run.reference, client, Defense()) for client in ends]
    before = [_timed(step) for step in undefended]
    plain_memory = peak_memory()
    defended = []
    for client in ends:
        defense = build_defense(run, arm, generator, client.name)
        images = run.dataset.normalisation.apply(client.train.unit_images())
        prepared = _seconds(partial(defense.prepare, images, client.train.sample_ids)) / len(client.train)
        defended.append(_timed(local_step(run, arm, client, defense)))
    defended_memory = peak_memory()
    # On both sides of the defended steps: the machine's speed drifts.
    after = [_timed(step) for step in undefended]
    evaluated = _seconds(partial(evaluation, run, run.new_model(run.reference)))
    steps = tuple(
        StepCost(client.batch_size, (first + last) / 2, found)
        for client, first, last, found in zip(ends, before, after, defended, strict=True)
    )
    return Cost(steps, prepared, plain_memory, defended_memory, evaluated)


def _one_batch(client: ClientData) -> ClientData:
    count = min(client.batch_size, len(client.train))
    return replace(client, train=client.train.subset(range(count)), batch_size=count)


def local_step(run: GridRun, arm: str, client: ClientData, defense: Defense) -> Callable[[], ModelUpdate]:
    """A function that trains the client from the arm's first model, as the first round does."""
    model = run.new_model(arm)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    defense.check_model(model)
    settings = run.config.training.model_copy(update={"local_epochs": 1})
    own = {name: state[name] for name in withheld_names(model, run.config.arms[arm].share_bn)}

    def step() -> ModelUpdate:
        return train_locally(
            model,
            state,
            client,
            defense,
            settings=settings,
            round=0,
            normalisation=run.dataset.normalisation,
            loss_fn=settings.loss_function(),
            seed=run.config.seed,
            kept=own,
        ).update

    return step


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _timed(work: Callable[[], object]) -> float:
    """The median of some repetitions after one that warms caches up; one alone where it takes long."""
    first = _seconds(work)
    return first if first > LONG else statistics.median(_seconds(work) for _ in range(REPETITIONS))


class _EnoughError(Exception):
    """Ends an attack that was started only to see how fast it is."""


class _Stopwatch(Task):
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


def measure_attack(folder: Path, grid: Grid, model: str, seed: int, attack: str) -> float:
    """Seconds of one step of an attack on an undefended update of its first client; in a process of its own."""
    run = grid_run(folder, grid, model, seed)
    torch.set_num_threads(run.config.threads)
    client = run.attacked_clients(attack)[0]
    job = Job(run.reference, attack, 0, client.name)
    network = run.new_model(run.reference)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    update = local_step(run, run.reference, client, Defense())()
    observation = observation_of(run, job, network, state, update)
    adaptive = run.config.attacks[attack].adaptive
    # In place of the rounds before, which would take as long.
    earlier = [] if adaptive is None else [observation] * (adaptive.rounds - 1)
    observation = observation_of(run, job, network, state, update, earlier)
    watch = _Stopwatch()
    try:
        run.config.attacks[attack].build().reconstruct(observation, seed=attack_seed(run, job), task=watch)
    except _EnoughError:
        return watch.seconds()
    return (time.perf_counter() - watch.times[0]) / max(run.config.attacks[attack].build().steps(), 1)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in a process that starts from this module's imports, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
