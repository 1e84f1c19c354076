"""Risk 1: noise without a target costs accuracy or leaves the data open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.risks.base import ATTACK, NO_DEFENSE, UNDEFENDED, changed, main_attack, shadow_arm
from shadow_defense.experiment.risks.readings import (
    Values,
    differences,
    f1_change,
    final_f1,
    image_values,
    mean_of,
    mean_over,
)
from shadow_defense.experiment.risks.risk import DotChart, Finding, Risk, Runs, Subrun
from shadow_defense.experiment.scoring import MEAN_IMAGE
from shadow_defense.metrics.confidence import MeanInterval
from shadow_defense.report.formatting import signed, signed_with_interval, with_interval

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
    ssim = {name: image_values(runs, arm=name, attack=ATTACK, column="ssim_whole") for name in (*names, MEAN_IMAGE)}
    worth = {name: final_f1(runs, name) for name in names}
    cost = {name: f1_change(runs, name, UNDEFENDED) for name in names[1:]}
    return finding(ssim, worth, cost, several_seeds=len(runs) > 1)


def finding(
    ssim: Mapping[str, Values],
    worth: Mapping[str, MeanInterval],
    cost: Mapping[str, MeanInterval],
    *,
    several_seeds: bool = False,
) -> Finding:
    """From SSIM by arm and image, macro F1 by arm, and its change against no defense."""
    kept = mean_over([differences(ssim[f"uniform-{strength}"], ssim[f"targeted-{strength}"]) for strength in STRENGTHS])
    value = mean_of(kept)
    blank = mean_of(ssim[MEAN_IMAGE]).mean
    sentence = (
        f"At equal energy, uniform noise on the images leaves the attack an SSIM that differs by "
        f"{signed_with_interval(value.mean, value.interval, 3)} from the one that targeted noise leaves, averaged over "
        f"the strengths {', '.join(map(str, STRENGTHS))}. {_hidden_sentence(ssim, cost, blank)}"
    )
    measured = "over trainings" if several_seeds else "over test images, of one training each"
    rows = []
    for name in worth:
        change = mean_of(differences(ssim[name], ssim[UNDEFENDED]))
        own, lost = mean_of(ssim[name]), cost.get(name)
        rows.append(
            (
                name,
                with_interval(own.mean, own.interval, 3),
                "" if lost is None else signed_with_interval(change.mean, change.interval, 3),
                with_interval(worth[name].mean, worth[name].interval, 3),
                ""
                if lost is None
                else signed_with_interval(
                    100 * lost.mean, lost.interval and (100 * lost.interval[0], 100 * lost.interval[1]), 1
                ),
            )
        )
    return Finding(
        sentence,
        "SSIM that uniform noise leaves to the attack, minus what targeted noise of the same energy leaves",
        value,
        "images",
        (
            DotChart("SSIM of the attack in the last round: lower is better protected",
                     {name: mean_of(ssim[name]) for name in worth}, (MEAN_IMAGE, blank)),
            DotChart("Change of macro F1 on the test images, against no defense", dict(cost), ("no change", 0.0)),
        ),
        ("Arm", "SSIM of the attack", "against no defense", "Macro F1", "points against no defense"),
        tuple(rows),
        digits=3,
        notes=(
            f"The intervals of F1 are {measured}.",
            "The control draws uniform noise in [-1, 1] and scales it to the energy that Shadow's noise has on the "
            "same image. Both see the true data in training; neither is a guarantee.",
            "Gaussian noise on gradients has no clipping here, hence no epsilon: the 'DP' of most comparisons.",
        ),
    )  # fmt: skip


def _hidden_sentence(ssim: Mapping[str, Values], cost: Mapping[str, MeanInterval], blank: float) -> str:
    """Which settings bring the attack down to the mean image, and what they cost."""
    if mean_of(ssim[UNDEFENDED]).mean <= blank:
        return "Without defense the attack does not beat the mean image either: here there is little to hide."
    hidden = [name for name in cost if mean_of(ssim[name]).mean <= blank]
    if not hidden:
        return "No setting brings the attack down to the mean image's level."
    listed = ", ".join(f"{name} ({signed(100 * cost[name].mean, 1)} points of F1)" for name in hidden)
    return f"The attack falls to the mean image's level in {listed}."


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
