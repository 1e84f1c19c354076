"""What the header of a record says: when, by which command, with which versions, from which results."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import TypedDict

from shadow_defense.experiment.provenance import versions
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.report.records.scores import Origin


class Made(TypedDict):
    """The fields of a :class:`Header` besides its title."""

    created: str
    command: str
    versions: Mapping[str, str]
    tasks: tuple[Origin, ...]


def made(command: str, threads: int, tasks: Iterable[Task], store: Store) -> Made:
    """For a record that is made now from the results of ``tasks``."""
    return {
        "created": datetime.date.today().isoformat(),
        "command": command,
        "versions": {**versions(), "threads": str(threads)},
        "tasks": store.origins(tasks),
    }
