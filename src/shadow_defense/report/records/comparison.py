"""The record of a comparison, and the pictures that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from shadow_defense.report.kit.metrics import metric_of
from shadow_defense.report.records.reading import Measure, Settings
from shadow_defense.report.records.scores import Attack, Data, Defense, Header, ScoreTable

PRIVACY, UTILITY = "ssim_whole", "f1_macro"
"""What a plane is drawn by: the lower the attack's SSIM, the more private."""


@dataclass(frozen=True, kw_only=True)
class DefenseEntry(Defense):
    """One arm of a comparison.

    Attributes:
        family: the sweep that it is a point of, its own name where nothing is swept; ``label``: its strength, short.
        placement: where Shadow Defense puts its noise (``targeted``, ``uniform``, ``shuffled``); None for others.
        control: the arm that spends the same noise everywhere alike.
    """

    family: str
    label: str
    placement: str | None = None
    control: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlanePoint:
    """One arm on a plane: what it leaves to the attacker, and macro F1."""

    arm: str
    privacy: Measure
    utility: Measure
    on_front: bool


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Privacy against utility under one attack on one model; ``baseline`` holds the guesses' means of ``metric``."""

    model: str
    attack: str
    metric: str
    points: tuple[PlanePoint, ...]
    baseline: Mapping[str, float] = field(default_factory=dict)

    @property
    def ranked(self) -> bool:
        """Whether there is a front: none where the attack fails without defense."""
        return any(point.on_front for point in self.points)

    def goodness(self, point: PlanePoint) -> tuple[float, float]:
        """Privacy and utility of a point, both better when larger."""
        sign = -1.0 if metric_of(self.metric).higher_is_closer else 1.0
        return sign * point.privacy.mean, point.utility.mean


def plane_of(table: ScoreTable) -> Plane:
    """The privacy-utility plane of a table whose front is marked."""
    points = tuple(
        PlanePoint(arm=row.arm, privacy=row.metrics[PRIVACY], utility=row.utility[UTILITY], on_front=bool(row.on_front))
        for row in table.rows
        if PRIVACY in row.metrics and UTILITY in row.utility
    )
    baseline = {row.arm: row.metrics[PRIVACY].mean for row in table.rows if row.baseline and PRIVACY in row.metrics}
    return Plane(model=table.model, attack=table.attack, metric=PRIVACY, points=points, baseline=baseline)


@dataclass(frozen=True)
class Failure:
    """A cell without numbers, and why."""

    cell: str
    error: str


@dataclass(frozen=True)
class LeftOut:
    """A pair that does not fit, and why."""

    model: str
    defense: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(Header):
    """What ``comparison.json`` holds; the first of ``defenses`` is without defense."""

    seeds: tuple[int, ...]
    data: Data
    models: Mapping[str, Settings]
    attacks: Mapping[str, Attack]
    defenses: Mapping[str, DefenseEntry]
    tables: tuple[ScoreTable, ...]
    ablations: tuple[ScoreTable, ...] = ()
    failures: tuple[Failure, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def planes(self) -> tuple[Plane, ...]:
        """One for each attack on each model that left arms to show."""
        planes = (plane_of(table) for model in self.models for table in self.pooled(model))
        return tuple(plane for plane in planes if plane.points)

    @property
    def first(self) -> str:
        """The name of the arm without defense."""
        return next(iter(self.defenses), "the first arm")

    def pooled(self, model: str) -> list[ScoreTable]:
        """One table for each attack on that model: all attacked rounds together, else the first round there is."""
        tables: dict[str, ScoreTable] = {}
        for table in sorted(self.tables, key=lambda table: table.round is not None):
            if table.model == model and table.rows:
                tables.setdefault(table.attack, table)
        return list(tables.values())


@dataclass(frozen=True)
class ComparisonPictures:
    """One of a client's images, (c, h, w) in [0, 1], and what one attack rebuilt of it in a round (from 1), by arm."""

    model: str
    attack: str
    round: int
    client: str
    class_name: str
    original: Float[Tensor, "c h w"]
    rebuilt: Mapping[str, Float[Tensor, "c h w"]]
