"""What every plan's record holds: its origin, its data, and scores by arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.records.reading import Measure, Measures, Settings

MEAN_IMAGE, RANDOM_UPDATE = "mean image", "random update"
BASELINES = (MEAN_IMAGE, RANDOM_UPDATE)
"""The last rows of a table: what an attacker draws without looking, and from noise in place of the update."""

Numbers = Annotated[Mapping[str, float | None], BeforeValidator(lambda value: {} if value is None else value)]


@dataclass(frozen=True)
class Origin:
    """A result behind the numbers: a folder ``kind-key`` of the store.

    Attributes:
        about: what it is, in a few words.
        created: when it was computed (ISO); ``versions``: with what.
        peak_megabytes: of the process that computed it, at that moment; None: an earlier version did not say.
    """

    kind: str
    key: str
    about: str
    created: str
    versions: Mapping[str, str]
    peak_megabytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Header:
    """Where a record comes from; ``created`` is an ISO date, ``command`` what makes it again.

    ``tasks`` are all results that its numbers were computed from.
    """

    title: str
    created: str
    command: str
    versions: Mapping[str, str]
    tasks: tuple[Origin, ...] = ()


@dataclass(frozen=True)
class Client:
    """How many images a client has."""

    train: int
    batch_size: int
    validation: int = 0
    test: int = 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data of a run; ``sha256`` is one hash, or one for each seed; ``in_words``: where the name says too little."""

    name: str
    image_size: tuple[int, int]
    channels: int
    clients: Mapping[str, Client]
    public: int
    test: int
    sha256: str | Mapping[str, str]
    classes: tuple[str, ...] = ()
    in_words: str | None = None


@dataclass(frozen=True, kw_only=True)
class Defense:
    """What protects an arm; ``share_bn`` is None for a model without batch norm."""

    defense: str
    summary: str
    acts_on: tuple[str, ...]
    preset: str | None = None
    options: Settings = field(default_factory=dict)
    share_bn: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack; rounds count from 1. ``knows_defense``: it is fitted to the defense (adaptive)."""

    attack: str
    settings: Settings
    threat_model: str
    rounds: tuple[int, ...]
    clients: tuple[str, ...]
    knows_defense: bool = False


@dataclass(frozen=True)
class Guarantee:
    """Epsilon of (epsilon, delta) differential privacy, over seeds."""

    epsilon: Measure
    delta: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm, or a baseline, under one attack.

    Attributes:
        metrics: of reconstructions, such as ``psnr_whole`` and ``ssim_inside``; ``difference``: to the first arm,
            paired by image (and seed).
        utility: ``f1_macro``, ``accuracy``, ``auroc`` on the test images; ``utility_difference``: to the first arm.
        control_difference: to the control that spends the same noise everywhere, where there is one.
        cost: ``time`` and ``memory`` as multiples of those without defense, ``prepare_seconds``.
        measured: by the defense itself, means.
        on_front: whether the arm stands on the attack's Pareto front; None where that was not asked.
    """

    arm: str
    images: int
    seeds: int = 1
    metrics: Measures
    difference: Measures = field(default_factory=dict)
    utility: Measures = field(default_factory=dict)
    utility_difference: Measures = field(default_factory=dict)
    control_difference: Measures = field(default_factory=dict)
    cost: Numbers = field(default_factory=dict)
    epsilon: Guarantee | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    share_bn: str | None = None
    on_front: bool | None = None

    @property
    def baseline(self) -> bool:
        """Whether this is a guess, which no defense protects."""
        return self.arm in BASELINES


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """One attack (on one model) in one round, counted from 1; None: in all attacked rounds together."""

    attack: str
    round: int | None
    rows: tuple[Row, ...]
    model: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """What a table is found by."""
        return self.model, self.attack

    def row(self, arm: str) -> Row | None:
        """The row of an arm, where it was scored."""
        return next((row for row in self.rows if row.arm == arm), None)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of one row, as scripts want it."""

    table: ScoreTable
    row: Row
    kind: str
    name: str
    value: Estimate
    difference: Estimate | None = None


def measurements(table: ScoreTable) -> Iterator[Measurement]:
    """Every number of a table, row by row: privacy, utility, cost, what the defense measured, its guarantee."""
    for row in table.rows:
        for kind, values, differences in (
            ("privacy", row.metrics, row.difference),
            ("utility", row.utility, row.utility_difference),
            ("cost", _exact(row.cost), {}),
            ("measured", _exact(row.measured), {}),
            ("guarantee", _guaranteed(row), {}),
        ):
            for name, value in values.items():
                yield Measurement(
                    table=table, row=row, kind=kind, name=name, value=value, difference=differences.get(name)
                )


def _exact(values: Mapping[str, float | None]) -> dict[str, Estimate]:
    return {name: Estimate(value, None, 1) for name, value in values.items() if value is not None}


def _guaranteed(row: Row) -> dict[str, Estimate]:
    if row.epsilon is None:
        return {}
    return {"epsilon": row.epsilon.epsilon, **_exact({"delta": row.epsilon.delta})}
