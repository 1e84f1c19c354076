"""A task whose result is one small record in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.files import read_json
from shadow_defense.report.records.reading import read_record, write_record

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
