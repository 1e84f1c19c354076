"""A run directory: its configuration, and names for the results of its tasks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

import shadow_defense
from shadow_defense.config import RunConfig, config_from
from shadow_defense.errors import RunError, ShadowDefenseError, shown
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.recorded import Recorded
from shadow_defense.experiment.run_folder import CONFIG, config_of
from shadow_defense.experiment.scene import Job, Placed, Scene, with_absolute_paths
from shadow_defense.experiment.scene_tasks import scorings_of
from shadow_defense.experiment.store import STORE, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import RECONSTRUCTION, Attacking
from shadow_defense.experiment.tasks.pretraining import GENERATOR, Pretraining
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.federated.rounds import kept_updates
from shadow_defense.federated.update import ALL_CLIENTS
from shadow_defense.files import (
    LOCK,
    is_empty,
    make_private_folder,
    path_name,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)
from shadow_defense.plain_yaml import as_mapping, read_yaml

FORMAT = "run.json"
"""In a run directory: which version wrote it, and how its files are laid."""

SCHEMA = 2


class Run(Placed):
    """One run: a folder and the configuration in it.

    The results lie in the folder's store; ``arms/<arm>``, ``shadow`` and ``attacks/<arm>/<attack>/...`` are links to
    them. Where ``arms/<arm>`` is a folder of its own, a server of another engine recorded it: it is taken as it is.

    Attributes:
        folder: where everything is written.
        store: where its results lie: below the folder, but for a run that is a part of something larger.
        config: what decides the numbers.
    """

    def __init__(self, folder: Path, config: RunConfig, store: Store | None = None) -> None:
        super().__init__(config)
        self.folder, self.store = folder, store or Store(folder)

    @property
    def scene(self) -> Scene:
        """The run without its folder."""
        return Scene(self.config, self.images)

    @classmethod
    def create(
        cls,
        folder: Path,
        config: RunConfig,
        *,
        restart: bool = False,
        check: Callable[[Run], None] | None = None,
        store: Store | None = None,
    ) -> Run:
        """Make the folder, or go on in one that holds the same configuration.

        Args:
            restart: delete what a run directory holds and begin anew.
            store: where its results lie; None: in the folder.
            check: raises for a run that cannot be carried out, before anything is written or deleted.

        Raises:
            RunError: when the folder holds results of another configuration, or files that no run wrote.
        """
        config = with_absolute_paths(config)
        made = cls(folder, config, store)
        if check is not None:
            check(made)
        written = folder / CONFIG
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: choose another folder with --out")
        if restart and written.exists():
            _delete_run(folder)
        if written.exists():
            earlier = cls.open(folder)
            if earlier.config.fingerprint() == config.fingerprint():
                return made
            if _holds_results(folder):
                key = _first_difference(earlier.config.as_dict(), config.as_dict())
                raise RunError(
                    f"{folder} holds a run with another {key}: choose another folder with --out, or give --restart to "
                    "delete that run"
                )
            # It was refused after its configuration was written: that must not stand in the way of the right one.
            _delete_run(folder)
        if folder.exists() and not is_empty(folder):
            raise RunError(f"{folder} exists and holds files that no run wrote: choose another folder with --out")
        write_json(folder / FORMAT, {"schema": SCHEMA, "shadow-defense": shadow_defense.__version__})
        write_text(written, yaml.safe_dump(config.as_dict(), sort_keys=False))
        return made

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run directory. Raises :class:`RunError` when there is none."""
        written = config_of(folder)
        _check_format(folder)
        try:
            return cls(folder, config_from(as_mapping(read_yaml(written), str(written))))
        except ShadowDefenseError as error:
            raise RunError(
                f"{written} cannot be read as a configuration: {error}; write the run's "
                "configuration there again (`shadow-defense config show` prints one), or begin anew with --restart"
            ) from error

    @property
    def shows_averages(self) -> bool:
        """Whether the server saw averages and no single update (secure aggregation): they are attacked then."""
        recorded = (self.arm_folder(arm) for arm in self.config.arms)
        return super().shows_averages or any(
            sender == ALL_CLIENTS for folder in recorded for _, sender in kept_updates(folder)
        )

    @property
    def generator_path(self) -> Path:
        return self.folder / "shadow" / GENERATOR

    def arm_folder(self, arm: str) -> Path:
        return self.folder / "arms" / arm

    def reconstruction_path(self, job: Job) -> Path:
        return (
            self.folder
            / "attacks"
            / job.arm
            / job.attack
            / f"round-{job.round:04d}-{path_name(job.client)}.safetensors"
        )

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    def pretraining(self) -> Pretraining:
        return Pretraining(self.scene)

    def training(self, arm: str) -> Task:
        """The training of an arm; one that something else recorded, where its folder is no link."""
        folder = self.arm_folder(arm)
        if folder.is_dir() and not folder.is_symlink():
            return Recorded(folder, self.config.training.rounds)
        return Training(self.scene, arm, engine_named(self.config.engine), self.kept())

    def trainings(self) -> list[Task]:
        return [self.training(arm) for arm in self.config.arms]

    def attacking(self, job: Job) -> Attacking:
        return Attacking(self.scene, job, self.training(job.arm))

    def scorings(self) -> Iterator[Scoring]:
        """For every attack, and after those of the first arm for the mean image on the same updates."""
        return scorings_of(self.scene, {arm: self.training(arm) for arm in self.config.arms})

    def name_generator(self) -> None:
        """A link from the name that people know to the result in the store, whether it is there yet or not."""
        link(self.folder / "shadow", self.store.place(self.pretraining()))

    def name_training(self, arm: str) -> None:
        training = self.training(arm)
        if training.given is None:
            link(self.arm_folder(arm), self.store.place(training))

    def name_reconstruction(self, attacking: Attacking) -> None:
        link(self.reconstruction_path(attacking.job), self.store.place(attacking) / RECONSTRUCTION)


def link(name: Path, target: Path) -> None:
    """Make ``name`` a link to ``target``, relative, so that both can be moved together."""
    wanted = os.path.relpath(target, name.parent)
    if name.is_symlink() and str(name.readlink()) == wanted:
        return
    make_private_folder(name.parent)
    make_private_folder(target.parent)
    name.unlink(missing_ok=True)
    name.symlink_to(wanted)


WRITTEN = frozenset(
    {
        "config.yaml",
        FORMAT,
        STORE,
        "traces",
        "shadow",
        "arms",
        "attacks",
        "scores.json",
        "results.csv",
        "results.json",
        "report.html",
    }
)
"""All that a run writes into its folder."""


def _check_format(folder: Path) -> None:
    """Raise :class:`RunError` for a run directory whose files another version laid."""
    path = folder / FORMAT
    if path.exists():
        written = read_json(path)
        if isinstance(written, dict) and written.get("schema") == SCHEMA:
            return
        version = written.get("shadow-defense", "another version") if isinstance(written, dict) else "another version"
    elif any((folder / name).exists() for name in ("arms", "attacks", "shadow", "results.json")):
        version = "0.1.0"
    else:
        # A configuration alone, which a user may have laid there.
        return
    raise RunError(
        f"{folder} was written by shadow-defense {shown(version)}, whose files {shadow_defense.__version__} does not "
        "read: choose another folder with --out, or give --restart to delete that run"
    )


def _holds_results(folder: Path) -> bool:
    """Whether a run directory holds more than what is written before anything is computed."""
    return any(path.is_file() and path.name not in (CONFIG, FORMAT, LOCK) for path in folder.rglob("*"))


def _delete_run(folder: Path) -> None:
    """Delete a run directory. Raises :class:`RunError` when anything else lies in it: that is the user's."""
    remove_leftovers(folder)
    entries = [entry for entry in sorted(folder.iterdir()) if entry.name != LOCK]
    for entry in entries:
        if entry.name not in WRITTEN:
            raise RunError(f"{entry} was written by no run: move it away, or choose another folder with --out")
    # The lock stays: who deletes a run goes on to write it.
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _first_difference(earlier: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in sorted(set(earlier) | set(new)):
        if key in ("workers", "title") and not prefix:
            continue
        old_value, new_value = earlier.get(key), new.get(key)
        if old_value != new_value:
            if isinstance(old_value, dict) and isinstance(new_value, dict):
                return _first_difference(old_value, new_value, f"{prefix}{key}.")
            return f"{prefix}{key} ({old_value!r}, not {new_value!r})"
    return "configuration"
