"""Where each cell of a comparison lies: in a folder named by a hash of all that decides its numbers.

A changed setting gives new names to the cells that depend on it, and to no others: the rest is found again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import shadow_defense
from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import RunError
from shadow_defense.experiment.attacking import Job, jobs
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.evaluating import data_hash
from shadow_defense.experiment.run import Run, with_absolute_paths
from shadow_defense.federated.rounds import read_journal

RANDOM_UPDATE = "random update"
"""The control arm: the first defense's updates replaced by noise of the same norms."""


@dataclass(frozen=True)
class Cell:
    """One training (``job`` is None) or one attack of one model and seed."""

    model: str
    seed: int
    arm: str
    job: Job | None = None

    def __str__(self) -> str:
        what = "training" if self.job is None else f"{self.job.attack}, round {self.job.round + 1}, {self.job.client}"
        return f"{self.model}, seed {self.seed}, {self.arm}: {what}"


class GridRun(Run):
    """The run of one model and one seed, with all defenses as arms; its files are cells, shared by content.

    Attributes:
        reference: the first defense, which the others are compared with.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        super().__init__(folder, with_absolute_paths(config))
        self.reference = next(iter(config.arms))

    @property
    def shows_averages(self) -> bool:
        """Never: a comparison trains in one process, and where its updates lie depends on which are attacked."""
        return False

    @cached_property
    def images_key(self) -> str:
        """Of the images, labels and clients, and of this software's version."""
        data = self.dataset
        clients = [[client.name, len(client.train), client.batch_size] for client in data.clients]
        return key_of(
            shadow_defense.__version__,
            data_hash(data),
            [data.normalisation.mean, data.normalisation.std],
            clients,
            [data.class_names, self.config.seed, self.config.threads],
        )

    @cached_property
    def start_key(self) -> str:
        """Of what every training starts from: images and model."""
        model = self.config.model
        start = [] if model.start is None else [file_hash(model.start)]
        return key_of(self.images_key, model.model_dump(mode="json"), file_hash(model.weights), *start)

    @cached_property
    def generator_key(self) -> str:
        settings = self.config.generator
        files = [file_hash(path) for path in (settings.path, settings.begin_from, settings.begin_from_discriminator)]
        return key_of(self.images_key, settings.model_dump(mode="json"), files)

    def training_key(self, arm: str) -> str:
        settings = self.config.arms[arm]
        kept = {round: sorted(clients) for round, clients in self.kept().items()}
        generator = self.generator_key if settings.kind().needs_generator else None
        training = self.config.training.model_dump(mode="json")
        return key_of(self.start_key, deciding(settings), training, kept, generator)

    def attack_key(self, job: Job) -> str:
        """``job.arm`` may be :data:`RANDOM_UPDATE`."""
        settings = self.config.attacks[job.attack]
        attack = settings.build()
        generator = self.generator_key if "generator" in attack.needs else None
        random = job.arm == RANDOM_UPDATE
        return key_of(
            self.training_key(self.reference if random else job.arm),
            [settings.attack, attack.model_dump(mode="json"), settings.threat_model],  # type: ignore[attr-defined]
            [job.attack, job.round, job.client, random],
            generator,
        )

    def score_key(self, job: Job) -> str:
        """The foreground is that of the reference's final model, or the lesion masks where the data has them."""
        metrics = self.config.metrics
        found = [metrics.model_dump(mode="json"), file_hash(metrics.lpips_weights)]
        masks = [] if self.masks_hash is None else [self.masks_hash]
        return key_of(self.attack_key(job), self.training_key(self.reference), found, *masks)

    @cached_property
    def masks_hash(self) -> str | None:
        """Of the lesion masks of all clients, which :attr:`images_key` leaves out; None where the data has none."""
        masks = [client.train.masks for client in self.dataset.clients if client.train.masks is not None]
        if not masks:
            return None
        return hashlib.sha256(b"".join(each.contiguous().numpy().tobytes() for each in masks)).hexdigest()

    def cost_key(self, arm: str) -> str:
        settings = self.config.arms[arm]
        training = self.config.training.model_dump(mode="json")
        generator = self.generator_key if settings.kind().needs_generator else None
        return key_of("cost", self.start_key, deciding(settings), training, generator)

    def history(self, arm: str) -> list[dict[str, Any]]:
        """What was measured in each round of a training; [] for one that is not finished, or whose journal is damaged.

        One with a damaged journal is tried again, and says then what is wrong with it.
        """
        try:
            done, history = read_journal(self.arm_folder(arm))
        except RunError:
            return []
        return history if done >= self.config.training.rounds else []

    def cell(self, kind: str, key: str) -> Path:
        return self.folder / "cells" / f"{kind}-{key}"

    @property
    def generator_path(self) -> Path:
        return self.cell("generator", self.generator_key) / "generator.safetensors"

    def arm_folder(self, arm: str) -> Path:
        return self.cell("training", self.training_key(arm))

    def reconstruction_path(self, arm: str, attack: str, round: int, client: str) -> Path:
        key = self.attack_key(Job(arm, attack, round, client))
        return self.cell("attack", key).with_suffix(".safetensors")


def all_jobs(run: GridRun) -> list[Job]:
    """The attacks on every arm, then those on the random updates; an ablation is attacked like any arm."""
    wanted = jobs(run)
    control = [replace(job, arm=RANDOM_UPDATE) for job in wanted if job.arm == run.reference]
    return [*wanted, *control]


def key_of(*parts: Any) -> str:
    """A short hash of plain values.

    >>> key_of("a", [1, None]) == key_of("a", [1, None]) != key_of("a", [1, 0])
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def file_hash(path: Path | None) -> str | None:
    """Of a file's content; None for no file."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def deciding(settings: DefenseSettings) -> dict[str, Any]:
    """What decides a defense's numbers: its resolved settings, not the preset that they came from."""
    named = settings.model_dump(mode="json", exclude={"preset", "options"})
    return {**named, "settings": settings.settings().model_dump(mode="json")}


@lru_cache(maxsize=8)
def _opened(folder: Path, grid: str, model: str, seed: int) -> GridRun:
    return GridRun(folder, Grid.model_validate_json(grid).run_config(model, seed))


def grid_run(folder: Path, grid: Grid, model: str, seed: int) -> GridRun:
    """The run of one model and one seed; kept in each process, since its data take seconds to load."""
    return _opened(folder, grid.model_dump_json(), model, seed)
