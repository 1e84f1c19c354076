"""The results in a folder, whatever command wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow_defense.errors import RunError
from shadow_defense.report.numbers import numbers
from shadow_defense.report.records.audit import AuditRecord
from shadow_defense.report.records.calibration import CalibrationRecord
from shadow_defense.report.records.certificate import CertificateRecord
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.reading import load_record
from shadow_defense.report.records.risks import RisksRecord
from shadow_defense.report.records.run import RunRecord
from shadow_defense.report.records.scores import Header

WRITTEN: dict[str, tuple[type[Header], str]] = {
    "results.json": (RunRecord, "report.html"),
    "comparison.json": (ComparisonRecord, "comparison.html"),
    "calibration.json": (CalibrationRecord, "calibration.html"),
    "risks.json": (RisksRecord, "risks.html"),
    "audit.json": (AuditRecord, "audit.html"),
    "certificate.json": (CertificateRecord, "certificate.html"),
}
"""By the file that holds a record: its type, and the page beside it."""


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

    def __repr__(self) -> str:
        return f"Results({self.record.title}, {self.record.created}, {type(self.record).__name__}, {self.page})"


def open_results(folder: str | Path) -> Results:
    """The results of ``run``, ``compare``, ``calibrate``, ``risks``, ``audit`` or ``protect``.

    Args:
        folder: as ``--out`` named it, or the JSON file in it.

    Raises:
        RunError: where there are none, or several kinds; or the file is damaged, or of another version.
    """
    place = Path(folder)
    files = [place] if place.is_file() else [place / name for name in WRITTEN if (place / name).is_file()]
    if len(files) != 1 or files[0].name not in WRITTEN:
        found = " and ".join(file.name for file in files) or "none"
        raise RunError(f"{place} holds {found} of {', '.join(WRITTEN)}: give a folder with one of them, or the file")
    [file] = files
    kind, page = WRITTEN[file.name]
    hint = "compute them again with the command that wrote them"
    return Results(load_record(kind, file, hint), file.parent / page)
