"""The results in a folder, whatever command wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from shadow_defense.errors import RunError
from shadow_defense.experiment.loggers import OnMeasurement, measurements
from shadow_defense.files import write_text
from shadow_defense.report.numbers import numbers
from shadow_defense.report.records.audit import AuditPair, AuditRecord
from shadow_defense.report.records.calibration import CalibrationRecord
from shadow_defense.report.records.certificate import CertificateRecord
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.evidence import EvidenceRecord
from shadow_defense.report.records.reading import load_record
from shadow_defense.report.records.risks import RisksRecord
from shadow_defense.report.records.run import RunRecord
from shadow_defense.report.records.scores import Header
from shadow_defense.report.records.textures import TexturesRecord

WRITTEN: dict[str, type[Header]] = {
    "results.json": RunRecord,
    "comparison.json": ComparisonRecord,
    "evidence-*.json": EvidenceRecord,
    "calibration.json": CalibrationRecord,
    "analytic.json": TexturesRecord,
    "risks.json": RisksRecord,
    "audit.json": AuditRecord,
    "pair.json": AuditPair,
    "certificate.json": CertificateRecord,
}
"""By the pattern of the file that holds a record: its type."""

PAGES: dict[type[Header], str] = {
    RunRecord: "report.html",
    TexturesRecord: "textures.html",
    AuditPair: "audit.html",
}
"""What the page beside a record is called, where it has not the record's own name."""


@dataclass(frozen=True, repr=False)
class Results:
    """What a command wrote.

    Attributes:
        record: all of it, typed.
        page: the same to read.
    """

    record: Header
    page: Path

    def to_frame(self) -> Any:
        """A pandas data frame, one row a number. Raises :class:`ConfigError` where pandas is missing."""
        return numbers(self.record).to_frame()

    def save_page(self, path: str | Path) -> Path:
        """Write the page elsewhere too, one file that loads nothing; it is as private as the images that it shows.

        Raises:
            RunError: where the page is not beside its record any more.
        """
        try:
            page = self.page.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"{self.page} cannot be read: write it again with `{self.record.command}`") from error
        write_text(Path(path), page)
        return Path(path)

    def log_to(self, on_measurement: OnMeasurement) -> None:
        """Hand a run's numbers to a logger, those of a round with it (:mod:`shadow_defense.experiment.loggers`).

        Raises:
            RunError: for what is no run, and has no rounds.
        """
        if not isinstance(self.record, RunRecord):
            raise RunError(
                f"{self.page} is no page of a run, and nothing else has rounds: give to_frame() to the logger"
            )
        for name, value, round in measurements(self.record):
            on_measurement(name, value, round)

    def __repr__(self) -> str:
        return f"Results({self.record.title}, {self.record.created}, {type(self.record).__name__}, {self.page})"


def open_results(folder: str | Path) -> Results:
    """What ``run``, ``compare``, ``evidence``, ``calibrate``, ``risks``, ``audit`` or ``protect`` wrote.

    Args:
        folder: as ``--out`` named it, or the JSON file in it.

    Raises:
        RunError: where there are none, or several; or the file is damaged, or of another version.
    """
    place = Path(folder)
    candidates = [place] if place.is_file() else sorted(place.glob("*.json"))
    found = [(file, kind) for file in candidates for pattern, kind in WRITTEN.items() if fnmatch(file.name, pattern)]
    if len(found) != 1:
        names = " and ".join(file.name for file, _ in found) or "none"
        raise RunError(f"{place} holds {names} of {', '.join(WRITTEN)}: give a folder with one of them, or the file")
    [(file, kind)] = found
    page = file.with_name(PAGES.get(kind, f"{file.stem}.html"))
    return Results(load_record(kind, file, "compute them again with the command that wrote them"), page)
