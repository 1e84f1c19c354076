"""Risk 1: noise without a target costs accuracy or leaves the data open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.plans.risks.base import ATTACK, NO_DEFENSE, UNDEFENDED, changed, main_attack, shadow_arm
from shadow_defense.experiment.plans.risks.readings import (
    Values,
    differences,
    f1_change,
    final_f1,
    image_values,
    mean_of,
    mean_over,
)
from shadow_defense.experiment.plans.risks.risk import DotChart, Finding, Risk, Runs, Subrun
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.formatting import MISSING, signed, signed_with_interval, with_interval
from shadow_defense.report.records.scores import MEAN_IMAGE

STRENGTHS = (0.19, 0.5, 1.0)
"""Of Shadow's noise, and of uniform noise with the same energy; the first is the published one."""

GRADIENT_SCALES = (0.001, 0.01, 0.1)
"""Standard deviations of Gaussian noise on every step's gradients: the presets of the defense ``noise``."""


def arms(base: RunConfig) -> dict[str, DefenseSettings]:
    """No defense; Shadow and its uniform control at each strength; Gaussian noise on gradients at each scale."""
    found = {UNDEFENDED: NO_DEFENSE}
    for strength in STRENGTHS:
        found[f"targeted-{strength}"] = shadow_arm(base, strength=strength, placement="targeted")
        found[f"uniform-{strength}"] = shadow_arm(base, strength=strength, placement="uniform")
    for scale in GRADIENT_SCALES:
        found[f"gradients-{scale}"] = DefenseSettings(defense="noise", options={"scale": scale})
    return found


def subruns(base: RunConfig, folder: Path) -> dict[str, Subrun]:
    # The last round, in which Shadow's noise is strongest and the model nearest to the one that is kept.
    attack = main_attack(base, [base.training.rounds])
    title = "Risk 1: uniform and targeted perturbation"
    return {"noise": Subrun(changed(base, title, arms=arms(base), attacks={ATTACK: attack}))}


def measure(seeds: Sequence[Runs]) -> Finding:
    runs = [runs["noise"] for runs in seeds]
    names = list(runs[0].config.arms)
    scores = {
        column: {
            name: image_values(runs, arm=name, attack=ATTACK, column=f"{column}_whole") for name in (*names, MEAN_IMAGE)
        }
        for column in ("ssim", "psnr")
    }
    worth = {name: final_f1(runs, name) for name in names}
    cost = {name: f1_change(runs, name, UNDEFENDED) for name in names[1:]}
    return finding(scores, worth, cost, several_seeds=len(runs) > 1)


def finding(
    scores: Mapping[str, Mapping[str, Values]],
    worth: Mapping[str, Estimate],
    cost: Mapping[str, Estimate],
    *,
    several_seeds: bool = False,
) -> Finding:
    """From SSIM and PSNR by arm and image, macro F1 by arm, and its change against no defense."""
    ssim, psnr = (uniform_minus_targeted(scores[column]) for column in ("ssim", "psnr"))
    ours, control = ([cost[f"{kind}-{strength}"].mean for strength in STRENGTHS] for kind in ("targeted", "uniform"))
    sentence = (
        f"Uniform noise in place of targeted noise of the same energy changes the attack's SSIM by "
        f"{signed_with_interval(ssim.mean, ssim.interval, 3)} and its PSNR by "
        f"{signed_with_interval(psnr.mean, psnr.interval, 2)} dB, averaged over the strengths "
        f"{', '.join(map(str, STRENGTHS))}. Against no defense, macro F1 changes by {_points(control)} points with "
        f"uniform noise and by {_points(ours)} with targeted noise. {_hidden_sentence(scores, cost)}"
    )
    measured = "over trainings" if several_seeds else "over test images, of one training each"
    return Finding(
        sentence,
        "SSIM that uniform noise leaves to the attack, minus what targeted noise of the same energy leaves",
        ssim,
        "images",
        (
            DotChart(
                "SSIM of the attack in the last round: lower is better protected",
                {name: mean_of(scores["ssim"][name]) for name in worth},
                (MEAN_IMAGE, mean_of(scores["ssim"][MEAN_IMAGE]).mean),
            ),
            DotChart("Change of macro F1 on the test images, against no defense", dict(cost), ("no change", 0.0)),
        ),
        ("Arm", "SSIM", "against no defense", "PSNR (dB)", "against no defense", "Macro F1", "points against none"),
        tuple(_row(name, scores, worth[name], cost.get(name)) for name in worth),
        digits=3,
        notes=(
            f"The intervals of F1 are {measured}.",
            "The control draws uniform noise in [-1, 1] and scales it to the energy that Shadow's noise has on the "
            "same image. Both see the true data in training; neither is a guarantee.",
            "Gaussian noise on gradients has no clipping here, hence no epsilon: the 'DP' of most comparisons.",
        ),
    )


def uniform_minus_targeted(scores: Mapping[str, Values]) -> Estimate:
    """A score that uniform noise leaves minus what targeted noise leaves, averaged over strengths, then images."""
    return mean_of(
        mean_over([differences(scores[f"uniform-{each}"], scores[f"targeted-{each}"]) for each in STRENGTHS])
    )


def _points(changes: Sequence[float]) -> str:
    return ", ".join(signed(100 * change, 1) for change in changes)


def _row(
    name: str, scores: Mapping[str, Mapping[str, Values]], worth: Estimate, cost: Estimate | None
) -> tuple[str, ...]:
    cells = [name]
    for column, digits in (("ssim", 3), ("psnr", 2)):
        own = mean_of(scores[column][name])
        change = mean_of(differences(scores[column][name], scores[column][UNDEFENDED]))
        cells.append(with_interval(own.mean, own.interval, digits))
        cells.append(MISSING if cost is None else signed_with_interval(change.mean, change.interval, digits))
    cells.append(with_interval(worth.mean, worth.interval, 3))
    if cost is None:
        return (*cells, MISSING)
    ends = None if cost.interval is None else (100 * cost.interval[0], 100 * cost.interval[1])
    return (*cells, signed_with_interval(100 * cost.mean, ends, 1))


def _hidden_sentence(scores: Mapping[str, Mapping[str, Values]], cost: Mapping[str, Estimate]) -> str:
    """Which settings bring the attack down to the mean image in SSIM and in PSNR, and what they cost."""

    def hidden(name: str) -> bool:
        return all(mean_of(values[name]).mean <= mean_of(values[MEAN_IMAGE]).mean for values in scores.values())

    if hidden(UNDEFENDED):
        return "Without defense the attack does not beat the mean image either: here there is little to hide."
    listed = ", ".join(f"{name} ({signed(100 * cost[name].mean, 1)} points of F1)" for name in cost if hidden(name))
    if not listed:
        return "No setting brings the attack down to the mean image's level in both."
    return f"The attack falls to the mean image's level in both with {listed}."


RISK = Risk(
    1,
    "uniform perturbation",
    "Noise that is spread evenly, over the image or over the gradients, is either so strong that the model suffers or "
    "so weak that the data stays open.",
    "Trainings without defense, with Shadow's noise where its map says, with uniform noise of the same energy on the "
    "same images, and with Gaussian noise on gradients, at three strengths each; the last round is attacked.",
    subruns,
    measure,
)
