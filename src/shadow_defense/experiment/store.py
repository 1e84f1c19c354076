"""Where results lie: in a plan's folder, each under the key of its task; what a neighbouring folder has is taken."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from shadow_defense.experiment.provenance import peak_megabytes, versions
from shadow_defense.experiment.task import Task
from shadow_defense.files import link_file, read_json, write_json
from shadow_defense.report.records.reading import read_record, write_record
from shadow_defense.report.records.scores import Origin

STORE = "store"
"""The folder below a plan's in which its results lie."""

RECORD = "task.json"
"""Beside each result: what was computed, when, with which versions."""


@dataclass(frozen=True)
class Store:
    """The results below one plan's folder.

    A plan's folder is whole: it can be moved, or its neighbours deleted. But what a folder beside it has computed is
    not computed again: its files get a second name here.
    """

    folder: Path

    @property
    def shared(self) -> Path:
        """Where processes lay what they share while they compute."""
        return self.folder / STORE / "shared"

    def place(self, task: Task) -> Path:
        """The folder of the task's result, whether it is there or not."""
        return self.folder / STORE / task.name if task.given is None else task.given

    def has(self, task: Task) -> bool:
        """Whether the result is there, taken over from a neighbour if need be."""
        place = self.place(task)
        if task.given is not None:
            return task.is_done(place)
        # The record comes last: without it, what was computed with is not known.
        if (place / RECORD).is_file() and task.is_done(place):
            return True
        for neighbour in self._beside:
            other = neighbour / task.name
            if (other / RECORD).is_file() and _is_own(neighbour) and task.is_done(other):
                _take_over(other, place)
                # A folder is whole: pages show what a result was made from too.
                for need in task.needs():
                    self.has(need)
                return True
        return False

    def record(self, task: Task) -> None:
        """Say beside a finished result what it is, and what it was computed with."""
        write_json(
            self.place(task) / RECORD,
            {
                "kind": task.kind,
                "key": task.key,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": versions(),
                "peak_megabytes": round(peak_megabytes()),
                "task": task.decided_by(),
            },
        )

    def provenance(self, task: Task) -> Origin:
        """Of a finished result. Raises :class:`RunError` where its record is missing or damaged."""
        path = self.place(task) / RECORD
        hint = f"delete {path.parent} to have it computed again"
        values = read_json(path, hint)
        named = {**values, "about": task.about} if isinstance(values, dict) else values
        return read_record(Origin, named, str(path), hint)

    def origins(self, tasks: Iterable[Task]) -> tuple[Origin, ...]:
        """The records of ``tasks`` and of all that they need, needs first, each once."""
        found: dict[str, Task] = {}

        def visit(task: Task) -> None:
            if task.name not in found and task.given is None:
                for need in task.needs():
                    visit(need)
                found[task.name] = task

        for task in tasks:
            visit(task)
        return tuple(self.provenance(task) for task in found.values())

    @cached_property
    def _beside(self) -> list[Path]:
        """Where the folders beside this one may hold results; looked for once, since there may be many of both."""
        own = self.folder.absolute()
        try:
            beside = sorted(own.parent.iterdir())
        except OSError:
            return []
        return [folder / STORE for folder in beside if folder != own]


def _is_own(folder: Path) -> bool:
    """Whether a folder is this user's and only this user's to change: others could plant results in it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return stat.S_ISDIR(status.st_mode) and own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _take_over(source: Path, place: Path) -> None:
    """Second names for all files of a result; what lay there before, unfinished, goes. The record comes last."""
    shutil.rmtree(place, ignore_errors=True)
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    for path in sorted(files, key=lambda path: path.name == RECORD):
        link_file(path, place / path.relative_to(source))


Record = TypeVar("Record")


class RecordTask(Task, Generic[Record]):
    """A task that saves one record.

    Attributes:
        file: its name, below the task's place.
        record: the dataclass.
    """

    file: str
    record: type[Record]

    def is_done(self, place: Path) -> bool:
        return (place / self.file).is_file()

    def save(self, store: Store, record: Record) -> None:
        """What :meth:`compute` found."""
        write_record(store.place(self) / self.file, record)

    def load(self, store: Store) -> Record:
        """What was found. Raises :class:`RunError` where it is missing or damaged."""
        path, hint = store.place(self) / self.file, "delete it to have it computed again"
        return read_record(self.record, read_json(path, hint), str(path), hint)
