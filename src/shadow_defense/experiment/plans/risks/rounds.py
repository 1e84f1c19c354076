"""Risk 3: leakage grows as training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    NO_DEFENSE,
    UNDEFENDED,
    Image,
    Risk,
    Trials,
    Values,
    changed,
    image_values,
    main_attack,
    mean_of,
    spread_rounds,
)
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.trial import Trial
from shadow_defense.metrics.intervals import slope
from shadow_defense.report.records.risks import Finding, Row
from shadow_defense.report.records.scores import MEAN_IMAGE

MOST_ROUNDS = 5


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
    rounds = base.training.rounds
    if rounds < 2:
        raise ConfigError(f"risk 3 follows leakage over the rounds: set training.rounds to 2 or more, not {rounds}")
    attack = main_attack(base, spread_rounds(rounds, MOST_ROUNDS))
    return {"rounds": Trial(changed(base, arms={UNDEFENDED: NO_DEFENSE}, attacks={ATTACK: attack}), store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["rounds"] for trials in seeds]
    attacked = [round + 1 for round in found[0].config.attacked_rounds(ATTACK)]
    scores = {
        column: {round: image_values(found, UNDEFENDED, f"{column}_whole", round=round) for round in attacked}
        for column in ("psnr", "ssim")
    }
    return finding(scores, mean_of(image_values(found, MEAN_IMAGE, "psnr_whole")).mean)


def slopes(by_round: Mapping[int, Values]) -> dict[Image, float]:
    """For each image that every round has, the least-squares slope of its score over the rounds."""
    rounds = list(by_round)
    images = [image for image in by_round[rounds[0]] if all(image in by_round[round] for round in rounds)]
    return {image: slope(rounds, [by_round[round][image] for round in rounds]) for image in images}


def finding(scores: Mapping[str, Mapping[int, Values]], blank: float) -> Finding:
    """From PSNR and SSIM by round (counted from 1) and image, and the mean image's PSNR."""
    psnr, ssim = (mean_of(slopes(scores[column])) for column in ("psnr", "ssim"))
    rows = [
        Row(str(round), {column: mean_of(scores[column][round]) for column in ("psnr", "ssim")})
        for round in scores["psnr"]
    ]
    return Finding(value=psnr, rows=tuple(rows), more={"ssim": ssim}, facts={"mean image": blank})


RISK = Risk(
    3,
    "The longer the training goes on, the more an update gives away.",
    "One training without defense, attacked in rounds spread over its whole length; a line through every image's "
    "scores over the rounds.",
    trials,
    measure,
)
