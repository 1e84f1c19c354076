"""The record of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.limit import Limit
from shadow_defense.report.records.reading import Measure, Settings
from shadow_defense.report.records.scores import Data, Header


@dataclass(frozen=True)
class Leakage:
    """What an attack rebuilds at one setting, in the worst attacked round; higher is more.

    Attributes:
        mean: over images, the greatest of all attacked rounds.
        low: lower end of the 95 % interval of that round's mean.
        high: greatest upper end over all rounds: below a target only where every round's is, so that trying several
            rounds takes nothing from its 97.5 %.
        round: the one with the greatest mean, counted from 1.
        images: how many the mean is over.
    """

    mean: float
    low: float
    high: float
    round: int
    images: int

    @property
    def estimate(self) -> Estimate:
        """As it is written: the greatest mean, from its round's lower end to the greatest upper one."""
        return Estimate(self.mean, (self.low, self.high), self.images)


@dataclass(frozen=True, kw_only=True)
class Strength:
    """One setting, trained and attacked with every seed; strength 0 is no defense.

    Attributes:
        mean_amplitude: the noise's amplitude averaged over the rounds.
        leakage: by metric.
        f1: macro F1 on the test images after the last round, by seed; ``f1_difference``: to no defense.
        seconds: of training and attacking, all seeds together, on the machine that ran them.
    """

    strength: float
    mean_amplitude: float
    leakage: Mapping[str, Leakage]
    f1: tuple[float, ...]
    f1_difference: Measure
    seconds: float

    @property
    def mean_f1(self) -> float:
        """Averaged over the seeds."""
        return math.fsum(self.f1) / len(self.f1)


@dataclass(frozen=True)
class Crossing:
    """Where a criterion begins to hold: at ``holds`` and every stronger measured strength, not at ``fails``.

    Each is None where no measured strength is such a one.
    """

    fails: float | None
    holds: float | None


@dataclass(frozen=True)
class Rise:
    """Two neighbouring strengths of which the stronger leaks more; ``clear``: their intervals do not overlap."""

    weaker: float
    stronger: float
    clear: bool


Outcome = Literal["found", "not needed", "not enough"]


@dataclass(frozen=True, kw_only=True)
class Bisected:
    """What follows from the leakage at measured strengths.

    Attributes:
        outcome: not needed: no defense leaks less than the target; not enough: the greatest strength leaks more.
        certain: by the whole interval; ``average``: by the mean alone.
        leaks: up to here the whole interval lies at or above the target.
        rises: where the means contradict that more noise leaks less.
        held_earlier: strengths that held although a stronger one failed: chance, or no monotone leakage.
    """

    outcome: Outcome
    certain: Crossing
    average: Crossing
    leaks: float | None
    rises: tuple[Rise, ...]
    held_earlier: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry(Bisected):
    """One schedule; ``measurements``: the weakest first, strength 0 is the undefended arm."""

    measurements: tuple[Strength, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen(Strength):
    """The weakest setting found, as it is pasted into a configuration."""

    schedule: str
    arm: Settings


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord(Header):
    """What ``calibration.json`` holds; ``mean_image`` is what an attacker reaches without any update."""

    seeds: tuple[int, ...]
    data: Data
    config: Settings
    settings: Settings
    target: Limit
    attack: str
    attack_settings: Settings
    threat_model: str
    mean_image: Mapping[str, Leakage]
    undefended: Strength
    schedules: Mapping[str, ScheduleEntry]
    chosen: Chosen | None
    seconds: float
    verdict: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Frame:
    """What the attack made of the shown image at one strength, in the round (from 1) in which it came closest."""

    strength: float
    rebuilt: Float[Tensor, "c h w"]
    ssim: float
    round: int


@dataclass(frozen=True)
class Film:
    """One image, in [0, 1], and what the attack makes of it at each measured strength, by schedule.

    It is the image that the attack comes closest to without defense, of the first seed.
    """

    client: str
    class_name: str
    original: Float[Tensor, "c h w"]
    mean_image: Float[Tensor, "c h w"]
    mean_image_ssim: float
    strips: Mapping[str, tuple[Frame, ...]]
