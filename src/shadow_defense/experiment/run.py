"""A run directory: its configuration, names for the results of its tasks, and what a server recorded there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import shadow_defense
from shadow_defense.attacks.observation import Observation
from shadow_defense.config import RunConfig, config_from
from shadow_defense.errors import ModelError, RunError, ShadowDefenseError, shown
from shadow_defense.experiment.folder import CONFIG, config_of, holds_results, open_folder
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.store import STORE, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import RECONSTRUCTION, Attacking, build_observation, read_sent
from shadow_defense.experiment.tasks.keys import arm_parts
from shadow_defense.experiment.tasks.pretraining import GENERATOR
from shadow_defense.experiment.tasks.training_place import TrainingPlace
from shadow_defense.experiment.trial import Trial
from shadow_defense.federated.training_folder import kept_updates, read_journal, train_again
from shadow_defense.federated.update import ALL_CLIENTS
from shadow_defense.files import LOCK, make_private_folder, path_name, read_json, remove_leftovers, write_json
from shadow_defense.plain_yaml import as_mapping, read_yaml
from shadow_defense.progress import Progress

FORMAT = "run.json"
"""In a run directory: which version wrote it, and how its files are laid."""

SCHEMA = 2


class Run(Trial):
    """One run: a folder and the configuration in it.

    The results lie in the folder's store; ``arms/<arm>``, ``shadow`` and ``attacks/<arm>/<attack>/...`` are links to
    them. Where ``arms/<arm>`` is a folder of its own, a server of another engine recorded it: it is taken as it is.

    Attributes:
        folder: where everything is written.
        config: what decides the numbers.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        super().__init__(config, Store(folder))
        self.folder = folder

    @classmethod
    def create(
        cls, folder: Path, config: RunConfig, *, restart: bool = False, check: Callable[[Run], None] | None = None
    ) -> Run:
        """Make the folder, or go on in one that holds the same configuration.

        Args:
            restart: delete what a run directory holds and begin anew.
            check: raises for a run that cannot be carried out, before anything is written or deleted.

        Raises:
            RunError: when the folder holds results of another configuration, or files that no run wrote.
        """
        config = config.with_absolute_paths()
        made = cls(folder, config)
        if check is not None:
            check(made)
        if restart and (folder / CONFIG).exists():
            _delete_run(folder)
        earlier = cls.open(folder).config.as_dict() if (folder / CONFIG).exists() else None
        open_folder(
            folder,
            "run",
            config.as_dict(),
            earlier=earlier,
            file=CONFIG,
            may_change=not holds_results(folder, CONFIG, FORMAT),
            hint="give --restart to delete that run",
        )
        if earlier is None:
            write_json(folder / FORMAT, {"schema": SCHEMA, "shadow-defense": shadow_defense.__version__})
        return made

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run directory. Raises :class:`RunError` when there is none."""
        written = config_of(folder)
        _check_format(folder)
        try:
            return cls(folder, config_from(as_mapping(read_yaml(written), str(written))))
        except ModelError as error:
            # One of the user's own, which the command has to name; the configuration is as it was written.
            raise ModelError(f"{written}: {error}") from error
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
        name = f"round-{job.round:04d}-{path_name(job.client)}.safetensors"
        return self.folder / "attacks" / job.arm / job.attack / name

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    @cached_property
    def trainings(self) -> dict[str, Task]:
        """By arm; of one that something else recorded, whose folder is no link, what it recorded."""
        folders = {arm: self.arm_folder(arm) for arm in self.config.arms}
        return super().trainings | {
            arm: Recorded(folder, self.config.training.rounds, self, arm)
            for arm, folder in folders.items()
            if folder.is_dir() and not folder.is_symlink()
        }

    def place(self, arm: str) -> TrainingPlace:
        """An arm as an engine trains it that writes into the run's own folder."""
        return TrainingPlace(self, arm, self.arm_folder(arm), self.generator_path)

    def observation(self, job: Job) -> Observation:
        """What the job's attacker sees. Raises :class:`RunError` where the update was not kept."""
        training = self.arm_folder(job.arm)
        return build_observation(self, job, read_sent(self, job, training), training, self.generator_path)

    def name_generator(self) -> None:
        """A link from the name that people know to the result in the store, whether it is there yet or not."""
        _link(self.folder / "shadow", self.store.place(self.pretraining))

    def name_training(self, arm: str) -> None:
        training = self.trainings[arm]
        if training.given is None:
            _link(self.arm_folder(arm), self.store.place(training))

    def name_reconstruction(self, attacking: Attacking) -> None:
        _link(self.reconstruction_path(attacking.job), self.store.place(attacking) / RECONSTRUCTION)


def _link(name: Path, target: Path) -> None:
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
        CONFIG,
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


@dataclass(frozen=True, eq=False)
class Recorded(Task):
    """The folder of a training whose draws are others' secrets: it cannot be made again, only read.

    Attributes:
        folder: where it lies.
        rounds: after how many rounds it is finished.
        scene: what its updates are read and attacked with.
    """

    folder: Path
    rounds: int
    scene: Scene
    arm: str

    kind = "training"

    def decided_by(self) -> Mapping[str, object]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        digests = {str(path.relative_to(self.folder)): _digest(path) for path in files}
        return {**arm_parts(self.scene, self.arm), "recorded": digests}

    @property
    def given(self) -> Path:
        return self.folder

    def is_done(self, place: Path) -> bool:
        return read_journal(self.folder)[0] >= self.rounds

    def compute(self, store: Store, progress: Progress) -> None:
        raise RunError(
            f"{self.folder} was recorded by a server and ends early: let it train to the end, or "
            + train_again(self.folder)
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
