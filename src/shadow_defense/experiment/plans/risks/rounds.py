"""Risk 3: leakage grows as training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.base import (
    ATTACK,
    NO_DEFENSE,
    UNDEFENDED,
    changed,
    main_attack,
    spread_rounds,
)
from shadow_defense.experiment.plans.risks.intervals import slope
from shadow_defense.experiment.plans.risks.readings import Image, Values, image_values, mean_of
from shadow_defense.experiment.plans.risks.risk import CurveChart, Finding, Risk, Runs, Subrun
from shadow_defense.report.kit.formatting import signed_with_interval, with_interval
from shadow_defense.report.records.scores import MEAN_IMAGE

MOST_ROUNDS = 5


def subruns(base: RunConfig, folder: Path) -> dict[str, Subrun]:
    rounds = base.training.rounds
    if rounds < 2:
        raise ConfigError(f"risk 3 follows leakage over the rounds: set training.rounds to 2 or more, not {rounds}")
    attack = main_attack(base, spread_rounds(rounds, MOST_ROUNDS))
    title = "Risk 3: leakage over the rounds"
    return {"rounds": Subrun(changed(base, title, arms={UNDEFENDED: NO_DEFENSE}, attacks={ATTACK: attack}))}


def measure(seeds: Sequence[Runs]) -> Finding:
    runs = [runs["rounds"] for runs in seeds]
    attacked = [round + 1 for round in runs[0].config.attacked_rounds(ATTACK)]
    return finding(
        {
            column: {
                round: image_values(runs, arm=UNDEFENDED, attack=ATTACK, column=f"{column}_whole", round=round)
                for round in attacked
            }
            for column in ("psnr", "ssim")
        },
        mean_of(image_values(runs, arm=MEAN_IMAGE, attack=ATTACK, column="psnr_whole")).mean,
    )


def slopes(by_round: Mapping[int, Values]) -> dict[Image, float]:
    """For each image that every round has, the least-squares slope of its score over the rounds."""
    rounds = list(by_round)
    images = [image for image in by_round[rounds[0]] if all(image in by_round[round] for round in rounds)]
    return {image: slope(rounds, [by_round[round][image] for round in rounds]) for image in images}


def finding(scores: Mapping[str, Mapping[int, Values]], blank: float) -> Finding:
    """From PSNR and SSIM by round (counted from 1) and image, and the mean image's PSNR."""
    psnr, ssim = (mean_of(slopes(scores[column])) for column in ("psnr", "ssim"))
    rounds = list(scores["psnr"])
    means = {round: mean_of(scores["psnr"][round]) for round in rounds}
    best = max(rounds, key=lambda round: means[round].mean)
    sentence = (
        f"The attack's PSNR changes by {signed_with_interval(psnr.mean, psnr.interval, 2)} dB a round and its SSIM by "
        f"{signed_with_interval(ssim.mean, ssim.interval, 3)}, from {means[rounds[0]].mean:.1f} dB in round "
        f"{rounds[0]} to {means[rounds[-1]].mean:.1f} dB in round {rounds[-1]}; it is highest in round {best} "
        f"({means[best].mean:.1f} dB)."
    )
    rows = []
    for round in rounds:
        similarity = mean_of(scores["ssim"][round])
        rows.append(
            (
                f"Round {round}",
                with_interval(means[round].mean, means[round].interval, 2),
                with_interval(similarity.mean, similarity.interval, 3),
            )
        )
    return Finding(
        sentence,
        "slope of PSNR in dB a round, a least-squares line for each image",
        psnr,
        "images",
        (
            CurveChart(
                "PSNR of the attack, dB",
                {
                    "no defense": [(round, means[round].mean) for round in rounds],
                    MEAN_IMAGE: [(round, blank) for round in rounds],
                },
            ),
        ),
        ("Round", "PSNR (dB)", "SSIM"),
        tuple(rows),
        unit="dB",
        notes=(
            "The same clients' updates are attacked in every round, with the same number of iterations.",
            f"{rounds[-1]} rounds are the beginning of a training: a slope here says nothing about round 100.",
        ),
    )


RISK = Risk(
    3,
    "leakage over rounds",
    "The longer the training goes on, the more an update gives away.",
    "One training without defense, attacked in rounds spread over its whole length; a line through every image's "
    "scores over the rounds.",
    subruns,
    measure,
)
