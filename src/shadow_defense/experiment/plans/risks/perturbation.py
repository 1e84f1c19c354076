"""Risk 1: noise without a target costs accuracy or leaves the data open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    COLUMNS,
    NO_DEFENSE,
    UNDEFENDED,
    Rebuilt,
    Risk,
    Trials,
    changed,
    differences,
    f1_change,
    final_f1,
    main_attack,
    means,
    rebuilt,
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
    images = {name: rebuilt(found, name) for name in (*names, MEAN_IMAGE)}
    utility = {name: mean_interval([final_f1(trial, name) for trial in found]) for name in names}
    return finding(images, utility, {name: f1_change(found, name, UNDEFENDED) for name in names[1:]})


def finding(images: Mapping[str, Rebuilt], utility: Mapping[str, Estimate], cost: Mapping[str, Estimate]) -> Finding:
    """From what was rebuilt by arm and image, macro F1 by arm, and its change against no defense."""
    rows = []
    for name in (*utility, MEAN_IMAGE):
        values = means(images[name])
        if name in utility:
            values["f1"] = utility[name]
        if name in cost:
            change = differences(images[name], images[UNDEFENDED])
            values |= {"f1_difference": cost[name], **{f"{column}_difference": change[column] for column in COLUMNS}}
        rows.append(Row(name, values))
    psnr, ssim = (uniform_minus_targeted(images, column) for column in COLUMNS)
    return Finding(value=ssim, rows=tuple(rows), more={"psnr": psnr})


def uniform_minus_targeted(images: Mapping[str, Rebuilt], column: str) -> Estimate:
    """A score that uniform noise leaves minus what targeted noise leaves, averaged over strengths, then images."""
    pairs = [(images[f"uniform-{each}"], images[f"targeted-{each}"]) for each in STRENGTHS]
    common = [image for image in pairs[0][0] if all(image in side for pair in pairs for side in pair)]
    changes = ([uniform[image][column] - targeted[image][column] for uniform, targeted in pairs] for image in common)
    return mean_interval([sum(each) / len(each) for each in changes])


RISK = Risk(
    1,
    "Noise that is spread evenly, over the image or over the gradients, is either so strong that the model suffers or "
    "so weak that the data stays open.",
    "Trainings without defense, with Shadow's noise where its map says, with uniform noise of the same energy on the "
    "same images, and with Gaussian noise on gradients, at three strengths each; the last round is attacked.",
    trials,
    measure,
)
