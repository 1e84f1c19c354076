"""Risk 3: leakage grows as training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    COLUMNS,
    Rebuilt,
    Risk,
    Trials,
    changed,
    main_attack,
    means,
    rebuilt,
    spread_rounds,
)
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.trial import Trial
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.metrics.intervals import slope
from shadow_defense.report.records.risks import Finding, Row
from shadow_defense.report.records.scores import MEAN_IMAGE

MOST_ROUNDS = 5


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
    rounds = base.training.rounds
    if rounds < 2:
        raise ConfigError(f"risk 3 follows leakage over the rounds: set training.rounds to 2 or more, not {rounds}")
    attack = main_attack(base, spread_rounds(rounds, MOST_ROUNDS))
    return {"rounds": Trial(changed(base, attacks={ATTACK: attack}), store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["rounds"] for trials in seeds]
    attacked = [round + 1 for round in found[0].config.attacked_rounds(ATTACK)]
    by_round = {round: rebuilt(found, round=round) for round in attacked}
    return finding(by_round, means(rebuilt(found, MEAN_IMAGE))["psnr"].mean)


def slopes(by_round: Mapping[int, Rebuilt], column: str) -> list[float]:
    """For each image that every round has, the least-squares slope of its score over the rounds."""
    rounds, (first, *later) = list(by_round), list(by_round.values())
    common = [image for image in first if all(image in images for images in later)]
    return [slope(rounds, [images[image][column] for images in by_round.values()]) for image in common]


def finding(by_round: Mapping[int, Rebuilt], blank: float) -> Finding:
    """From what was rebuilt by round (counted from 1) and image, and the mean image's PSNR."""
    psnr, ssim = (mean_interval(slopes(by_round, column)) for column in COLUMNS)
    rows = tuple(Row(str(round), means(images)) for round, images in by_round.items())
    return Finding(value=psnr, rows=rows, more={"ssim": ssim}, facts={"mean image": blank})


RISK = Risk(
    3,
    "The longer the training goes on, the more an update gives away.",
    "One training without defense, attacked in rounds spread over its whole length; a line through every image's "
    "scores over the rounds.",
    trials,
    measure,
)
