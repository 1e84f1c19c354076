"""Risk 1: noise without a target costs accuracy or leaves the data open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    NO_DEFENSE,
    UNDEFENDED,
    Risk,
    Trials,
    Values,
    changed,
    differences,
    f1_change,
    final_f1,
    image_values,
    main_attack,
    mean_of,
    mean_over,
    shadow_arm,
)
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.trial import Trial
from shadow_defense.metrics.confidence import Estimate, mean_interval
from shadow_defense.report.records.risks import Finding, Row
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


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
    # The last round, in which Shadow's noise is strongest and the model nearest to the one that is kept.
    attack = main_attack(base, [base.training.rounds])
    return {"noise": Trial(changed(base, arms=arms(base), attacks={ATTACK: attack}), store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["noise"] for trials in seeds]
    names = list(found[0].config.arms)
    scores = {
        column: {name: image_values(found, name, f"{column}_whole") for name in (*names, MEAN_IMAGE)}
        for column in ("ssim", "psnr")
    }
    utility = {name: mean_interval([final_f1(trial, name) for trial in found]) for name in names}
    return finding(scores, utility, {name: f1_change(found, name, UNDEFENDED) for name in names[1:]})


def finding(
    scores: Mapping[str, Mapping[str, Values]], utility: Mapping[str, Estimate], cost: Mapping[str, Estimate]
) -> Finding:
    """From SSIM and PSNR by arm and image, macro F1 by arm, and its change against no defense."""
    ssim, psnr = (uniform_minus_targeted(scores[column]) for column in ("ssim", "psnr"))
    rows = []
    for name in (*utility, MEAN_IMAGE):
        values = {column: mean_of(scores[column][name]) for column in ("ssim", "psnr")}
        if name in utility:
            values["f1"] = utility[name]
        if name in cost:
            values["f1_difference"] = cost[name]
            for column in ("ssim", "psnr"):
                change = differences(scores[column][name], scores[column][UNDEFENDED])
                values[f"{column}_difference"] = mean_of(change)
        rows.append(Row(name, values))
    return Finding(value=ssim, rows=tuple(rows), more={"psnr": psnr})


def uniform_minus_targeted(scores: Mapping[str, Values]) -> Estimate:
    """A score that uniform noise leaves minus what targeted noise leaves, averaged over strengths, then images."""
    return mean_of(
        mean_over([differences(scores[f"uniform-{each}"], scores[f"targeted-{each}"]) for each in STRENGTHS])
    )


RISK = Risk(
    1,
    "Noise that is spread evenly, over the image or over the gradients, is either so strong that the model suffers or "
    "so weak that the data stays open.",
    "Trainings without defense, with Shadow's noise where its map says, with uniform noise of the same energy on the "
    "same images, and with Gaussian noise on gradients, at three strengths each; the last round is attacked.",
    trials,
    measure,
)
