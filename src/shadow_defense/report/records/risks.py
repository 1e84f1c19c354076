"""The record of the risks: for each its claim, and the numbers that its experiment ended in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shadow_defense.report.records.reading import Measure, Measures, Settings
from shadow_defense.report.records.scores import Header

SUPPORTED, NOT_CLEAR, CONTRADICTED = "supported", "not clear", "contradicted"
"""What a number can mean for its claim."""


@dataclass(frozen=True)
class Row:
    """What was measured of one arm, round or group of clients: estimates by quantity."""

    name: str
    values: Measures


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one experiment ended in.

    Attributes:
        value: the number that the claim stands or falls with; the greater, the better for the claim.
        nothing: what it would be if the claim were wrong: 0 for differences, 1 for ratios.
        rows: what it was made from.
        more: other estimates beside it, by name; ``facts``: what was fixed or is exact.
    """

    value: Measure
    rows: tuple[Row, ...]
    nothing: float = 0.0
    more: Measures = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """Supported or contradicted where the interval leaves out :attr:`nothing`; one value alone is never clear."""
        if not self.value.clear(self.nothing):
            return NOT_CLEAR
        return SUPPORTED if self.value.mean > self.nothing else CONTRADICTED

    def row(self, name: str) -> Row:
        """The row of that name. Raises :class:`KeyError` where there is none."""
        return {row.name: row for row in self.rows}[name]

    def names(self, quantity: str) -> list[str]:
        """The rows that have a quantity."""
        return [row.name for row in self.rows if quantity in row.values]


@dataclass(frozen=True, kw_only=True)
class RiskEntry:
    """One risk; ``results`` names the tasks behind its numbers, by kind and key."""

    number: int
    name: str
    claim: str
    experiment: str
    finding: Finding
    outcome: str
    sentence: str
    results: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RisksRecord(Header):
    """What ``risks.json`` holds."""

    seeds: tuple[int, ...]
    config: Settings
    risks: tuple[RiskEntry, ...]
