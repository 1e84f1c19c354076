"""A training that something else than a plan wrote: a Flower server in a deployment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import key_of
from shadow_defense.federated.training_folder import read_journal, train_again
from shadow_defense.progress import Progress


@dataclass(frozen=True, eq=False)
class Recorded(Task):
    """The folder of a training whose draws are others' secrets: it cannot be made again, only read.

    Attributes:
        folder: where it lies.
        rounds: after how many rounds it is finished.
    """

    folder: Path
    rounds: int

    kind = "training"

    @cached_property
    def key(self) -> str:
        """Of the files themselves."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return key_of([[str(path.relative_to(self.folder)), _digest(path)] for path in files])

    @property
    def given(self) -> Path:
        return self.folder

    def describe(self) -> Mapping[str, object]:
        return {"recorded": str(self.folder)}

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
