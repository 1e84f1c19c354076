"""The record of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from shadow_defense.report.kit.formatting import METRICS, RELATIVE_LEAKAGE, Metric
from shadow_defense.report.records.reading import Measure, Settings
from shadow_defense.report.records.scores import Data, Header

LEAKAGE: dict[str, Metric] = {"ssim": METRICS["ssim"], "psnr": METRICS["psnr"], "rdlv": RELATIVE_LEAKAGE}
"""What leakage is measured by."""


@dataclass(frozen=True)
class Leakage:
    """What an attack rebuilds in the worst attacked round (from 1), over images.

    ``high`` is the greatest upper end of all rounds' 95 % intervals.
    """

    mean: float
    low: float
    high: float
    round: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Strength:
    """One setting, trained and attacked with every seed; ``f1`` is macro F1 by seed."""

    strength: float
    mean_amplitude: float
    leakage: Mapping[str, Leakage]
    f1: tuple[float, ...]
    f1_difference: Measure

    @property
    def mean_f1(self) -> float:
        """Averaged over the seeds."""
        return math.fsum(self.f1) / len(self.f1)


@dataclass(frozen=True)
class Bracket:
    """The weakest strength that holds and the strongest that does not; None where there is none."""

    holds: float | None
    fails: float | None


@dataclass(frozen=True)
class Rise:
    """A stronger setting that leaks more than a weaker one; ``clear`` where their intervals do not overlap."""

    weaker: float
    stronger: float
    clear: bool


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry:
    """What bisection found for one schedule.

    Attributes:
        outcome: ``found``, ``not needed`` or ``not enough``.
        certain: by the whole interval; ``average``: by the mean alone.
        leaks: up to here the whole interval lies at or above the target.
        held_earlier: strengths that held although a stronger one failed.
        measurements: the weakest first; strength 0 is the undefended arm.
    """

    outcome: str
    certain: Bracket
    average: Bracket
    leaks: float | None
    rises: tuple[Rise, ...]
    held_earlier: tuple[float, ...]
    measurements: tuple[Strength, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen(Strength):
    """The weakest setting found, as it is pasted into a configuration."""

    schedule: str
    arm: Settings


@dataclass(frozen=True)
class Target:
    """What leakage must stay below."""

    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord(Header):
    """What ``calibration.json`` holds; ``mean_image`` is what an attacker reaches without any update."""

    seeds: tuple[int, ...]
    data: Data
    config: Settings
    target: Target
    attack: str
    attack_settings: Settings
    threat_model: str
    mean_image: Mapping[str, Leakage]
    undefended: Strength
    schedules: Mapping[str, ScheduleEntry]
    chosen: Chosen | None
    verdict: tuple[str, ...] = field(default=())
