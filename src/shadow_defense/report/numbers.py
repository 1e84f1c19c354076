"""What each record says in numbers, one table a record: for files and data frames."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

from shadow_defense.errors import ConfigError
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.columns import end_columns
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.pages.compare import comparison_numbers
from shadow_defense.report.pages.evidence import evidence_numbers
from shadow_defense.report.pages.run import run_numbers
from shadow_defense.report.records.audit import AttackEnd, AuditPair, AuditRecord, RiskRow
from shadow_defense.report.records.calibration import CalibrationRecord, Leakage, Strength
from shadow_defense.report.records.certificate import CertificateRecord
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.evidence import EvidenceRecord
from shadow_defense.report.records.risks import RiskEntry, RisksRecord
from shadow_defense.report.records.run import RunRecord
from shadow_defense.report.records.textures import TextureRow, TexturesRecord


@singledispatch
def numbers(record: object) -> Table[Any]:
    """A record's numbers, one row each: of whatever :func:`shadow_defense.open_results` opens.

    Raises:
        ConfigError: for anything else.
    """
    raise ConfigError(f"{type(record).__name__} is no record with numbers: give that of a run or another plan")


numbers.register(RunRecord, run_numbers)
numbers.register(ComparisonRecord, comparison_numbers)
numbers.register(EvidenceRecord, evidence_numbers)


class _Rebuilt(NamedTuple):
    arm: str
    attack: str
    end: AttackEnd
    row: RiskRow | None


SCORES = ("image", "psnr", "ssim", "lpips", "mean_image_ssim", "rdlv", "iip")


def _rebuilt(record: AuditRecord, arm: str = "") -> list[_Rebuilt]:
    """A row for each reconstruction that was scored; of an attack without scores one row."""
    return [
        _Rebuilt(arm, name, end, row)
        for name, end in record.attacks.items()
        for row in (end.rows or (None,))  # type: ignore[arg-type, unused-ignore]
    ]


@numbers.register
def _audit(record: AuditRecord) -> Table[_Rebuilt]:
    columns: list[Column[_Rebuilt]] = [
        Column("attack", lambda each: each.attack),
        Column("verdict", lambda each: each.end.verdict),
        Column("cosine", lambda each: each.end.cosine),
        Column("reconstruction", lambda each: None if each.row is None else each.row.reconstruction),
        *(Column(name, _score(name)) for name in SCORES),
    ]
    return Table("", columns, _rebuilt(record))


@numbers.register
def _pair(record: AuditPair) -> Table[_Rebuilt]:
    """The rows of both audits, under the arm that each is of."""
    rows = [row for arm, audit in record.audits.items() for row in _rebuilt(audit, arm)]
    columns = _audit(next(iter(record.audits.values()))).columns
    return Table("", (Column[_Rebuilt]("arm", lambda each: each.arm), *columns), rows)


def _score(name: str) -> Any:
    return lambda each: None if each.row is None else getattr(each.row, name)


class _Measured(NamedTuple):
    schedule: str
    strength: Strength
    metric: str
    leakage: Leakage


@numbers.register
def _calibration(record: CalibrationRecord) -> Table[_Measured]:
    """A row for each metric of each strength of each schedule."""
    rows = [
        _Measured(schedule, strength, metric, leakage)
        for schedule, entry in record.schedules.items()
        for strength in entry.measurements
        for metric, leakage in strength.leakage.items()
    ]
    columns: list[Column[_Measured]] = [
        Column("schedule", lambda each: each.schedule),
        Column("strength", lambda each: each.strength.strength),
        Column("metric", lambda each: each.metric),
        Column("mean", lambda each: each.leakage.mean),
        Column("low", lambda each: each.leakage.low),
        Column("high", lambda each: each.leakage.high),
        Column("round", lambda each: each.leakage.round),
        Column("images", lambda each: each.leakage.images),
        Column("f1_macro", lambda each: each.strength.mean_f1),
    ]
    return Table("", columns, rows)


@numbers.register
def _textures(record: TexturesRecord) -> Table[TextureRow]:
    """A row for the clean images, and for each texture at each of its strengths."""
    rows = record.compared
    columns: list[Column[TextureRow]] = [
        Column("preset", lambda row: row.preset),
        Column("strength", lambda row: row.strength),
        Column("weakest", lambda row: row.weakest),
        Column("on_front", lambda row: row.on_front),
        *(Column(name, _value("leaks", name)) for name in dict.fromkeys(name for row in rows for name in row.leaks)),
        *(Column(name, _value("worth", name)) for name in record.clean),
    ]
    return Table("", columns, rows)


def _value(table: str, name: str) -> Any:
    return lambda row: getattr(row, table).get(name)


@numbers.register
def _risks(record: RisksRecord) -> Table[RiskEntry]:
    """A row for each risk: the number that its claim stands or falls with."""
    columns: list[Column[RiskEntry]] = [
        Column("risk", lambda each: each.number),
        Column("name", lambda each: each.name),
        *end_columns(lambda each: each.finding.value),
        Column("nothing", lambda each: each.finding.nothing),
        Column("outcome", lambda each: each.outcome),
    ]
    return Table("", columns, record.risks)


class _Removed(NamedTuple):
    remover: str
    metric: str
    value: Estimate


@numbers.register
def _certificate(record: CertificateRecord) -> Table[_Removed]:
    """A row for each metric of each remover, then of the mean image, of the best remover and of finding again."""
    kinds = {
        **record.removers,
        "mean image": record.mean_image,
        "worst": record.worst,
        "hindsight": record.hindsight,
        "linkage": record.linkage,
        "floor": record.floor,
    }
    rows = [_Removed(name, metric, value) for name, each in kinds.items() for metric, value in each.items()]
    columns: list[Column[_Removed]] = [
        Column("remover", lambda each: each.remover),
        Column("metric", lambda each: each.metric),
        *end_columns(lambda each: each.value),
        Column("images", lambda each: each.value.count),
    ]
    return Table("", columns, rows)
