"""What a risk is: a claim, the runs that test it, and the finding that they end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.run import STAGES
from shadow_defense.experiment.run import Run
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.progress import Progress

Outcome = Literal["borne out", "not clear", "contradicted"]


@dataclass(frozen=True)
class DotChart:
    """A row for each label: a mean with its interval; the baseline, if any, as a line."""

    title: str
    dots: Mapping[str, Estimate]
    baseline: tuple[str, float] | None = None
    kind: str = "dots"


@dataclass(frozen=True)
class CurveChart:
    """Curves over rounds counted from 1: for each label its (round, value) points."""

    title: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    kind: str = "curves"


@dataclass(frozen=True)
class Finding:
    """What one experiment ends in.

    Attributes:
        sentence: what was found, whichever way it points.
        quantity: what the number is, with the direction in which it supports the claim: always upwards.
        value: the number, its 95 % interval, and how many values are behind it.
        values_are: what it is counted over, such as images.
        nothing: what the number would be if the claim were wrong, 0 for differences, 1 for ratios.
        columns, rows: a table; the first column names the row.
        notes: what limits the finding.
    """

    sentence: str
    quantity: str
    value: Estimate
    values_are: str
    charts: tuple[DotChart | CurveChart, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    nothing: float = 0.0
    unit: str = ""
    digits: int = 2
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Borne out or contradicted where the interval leaves out :attr:`nothing`; one value alone is never clear."""
        if self.value.interval is None:
            return "not clear"
        low, high = self.value.interval
        if low > self.nothing:
            return "borne out"
        return "contradicted" if high < self.nothing else "not clear"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the outcome among them."""
        return {**asdict(self), "outcome": self.outcome}


def all_stages(run: Run, progress: Progress) -> None:
    """Every stage to ``results.json``; nothing where that is there already."""
    if not run.results_path.exists():
        for stage in ("pretrain", "train", "attack", "evaluate"):
            STAGES[stage](run, progress)


@dataclass(frozen=True)
class Subrun:
    """One run directory of an experiment: its configuration, and what is done in it."""

    config: RunConfig
    carry_out: Callable[[Run, Progress], None] = all_stages


Runs = Mapping[str, Run]
"""The finished runs of one seed, by label."""


@dataclass(frozen=True)
class Risk:
    """One of the risks.

    Attributes:
        number: in the article's order, from 1.
        name: a few words; with the number it names the folder.
        claim: the article's, in our words.
        experiment: how it is tested, in a sentence or two.
        subruns: from the base configuration (whose seed is the sub-runs') and the folder that they will lie in to
            the sub-runs by label, in the order in which they are carried out. Raises :class:`ConfigError` for a base
            that it cannot be tested on.
        measure: from the runs of every seed to the finding.
    """

    number: int
    name: str
    claim: str
    experiment: str
    subruns: Callable[[RunConfig, Path], dict[str, Subrun]]
    measure: Callable[[Sequence[Runs]], Finding]

    @property
    def folder(self) -> str:
        """The name of its folder.

        >>> from shadow_defense.experiment.plans.risks.build import RISKS
        >>> RISKS[3].folder
        '3-leakage-over-rounds'
        """
        return f"{self.number}-{self.name.replace(' ', '-')}"
