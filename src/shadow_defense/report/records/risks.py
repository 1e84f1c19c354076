"""The record of the risks: for each its claim, and the number that its experiment ended in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shadow_defense.report.records.reading import Measure, Measures, Settings
from shadow_defense.report.records.scores import Header


@dataclass(frozen=True, kw_only=True)
class DotChart:
    """A row for each label; the baseline, if any, as a line."""

    kind: Literal["dots"]
    title: str
    dots: Measures
    baseline: tuple[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class CurveChart:
    """For each label its (round, value) points, rounds counted from 1."""

    kind: Literal["curves"]
    title: str
    curves: Mapping[str, tuple[tuple[int, float], ...]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one experiment ended in.

    Attributes:
        sentence: what was found, whichever way it points.
        quantity: what the number counts; ``values_are``: what it is counted over, such as images.
        outcome: a key of :data:`shadow_defense.report.sentences.risks.OUTCOMES`.
        columns, rows: a table; the first column names the row.
    """

    sentence: str
    quantity: str
    value: Measure
    values_are: str
    outcome: str
    charts: tuple[DotChart | CurveChart, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    unit: str = ""
    digits: int = 2
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RiskEntry:
    """One risk; ``folders`` are those of its sub-runs that have a page of their own."""

    number: int
    name: str
    claim: str
    experiment: str
    finding: Finding
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RisksRecord(Header):
    """What ``risks.json`` holds."""

    seeds: tuple[int, ...]
    config: Settings
    risks: tuple[RiskEntry, ...]
