"""How costs are measured: in a fresh process that does nothing else, step by step."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.base import Defense
from shadow_defense.errors import RunError
from shadow_defense.experiment.preloading import forking_context
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.store import Record, RecordTask, Store
from shadow_defense.experiment.tasks.pretraining import generator_file
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.states import on_host
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.progress import Progress

REPETITIONS = 3
LONG = 10.0
"""Seconds of a step from which one repetition has to do."""


class Measuring(RecordTask[Record]):
    """A task that measures a scene, in a new process with nothing beside it."""

    file = "cost.json"
    scene: Scene

    @abstractmethod
    def measure(self, generator: Path) -> Record:
        """To be called in a process of its own: the peak of memory never falls again.

        Args:
            generator: the shadow generator's file, whether it is there or not.
        """

    @property
    def alone(self) -> bool:
        return True

    def compute(self, store: Store, progress: Progress) -> None:
        self.save(store, in_own_process(_measured, self, generator_file(self.scene, store)))


def _measured(task: Measuring[Record], generator: Path) -> Record:
    torch.set_num_threads(task.scene.config.threads)
    return task.measure(generator)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in a process that has done nothing else: this one, where a scheduler made it for the task."""
    if multiprocessing.parent_process() is not None:
        return function(*arguments)
    try:
        with ProcessPoolExecutor(1, mp_context=forking_context()) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise RunError("its process was killed, perhaps for lack of memory") from error


def local_step(scene: Scene, arm: str, client: ClientData, defense: Defense) -> Callable[..., ModelUpdate]:
    """A function that trains the client from the arm's first model for an epoch, as a round (0-based) does."""
    model = scene.new_model(arm).to(scene.device)
    state = {name: tensor.clone() for name, tensor in on_host(model.state_dict()).items()}
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


def median_seconds(work: Callable[[], object]) -> float:
    """The median of some repetitions after one that warms caches up; one alone where it takes long."""
    first = seconds_of(work)
    return first if first > LONG else statistics.median(seconds_of(work) for _ in range(REPETITIONS))
