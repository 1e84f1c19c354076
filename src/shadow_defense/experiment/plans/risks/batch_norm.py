"""Risk 2: batch-norm statistics make the reconstruction easier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.base import NO_DEFENSE, UNDEFENDED, changed, main_attack
from shadow_defense.experiment.plans.risks.readings import Values, differences, image_values, mean_of
from shadow_defense.experiment.plans.risks.risk import DotChart, Finding, Risk, Runs, Subrun
from shadow_defense.models.build import MODELS
from shadow_defense.report.kit.formatting import signed_with_interval, with_interval
from shadow_defense.report.records.scores import MEAN_IMAGE

WITH, WITHOUT = "with-statistics", "without-statistics"

SIZES = (1, 1, 1, 1, 1, 1, 4, 4)
"""Images of each client, all of them one batch: the statistics of small batches say most."""


def _attack(base: RunConfig) -> AttackSettings:
    """The base's attack gradinversion, or one with as many iterations as its first attack."""
    own = next((attack for attack in base.attacks.values() if attack.attack == "gradinversion"), None)
    if own is not None:
        return own
    first = main_attack(base, [1])
    return AttackSettings(
        attack="gradinversion", options={"iterations": first.build().steps()}, threat_model=first.threat_model
    )


def subruns(base: RunConfig, folder: Path) -> dict[str, Subrun]:
    kind = MODELS.get(base.model.name)
    if kind is None or "batch" not in kind.normalisations:
        able = ", ".join(name for name, model in MODELS.items() if "batch" in model.normalisations)
        raise ConfigError(f"risk 2 needs a model that can have batch norm, not '{base.model.name}': choose {able}")
    attack = _attack(base)
    # Every client is attacked, in the first round.
    everyone = {"rounds": (1,), "clients": None, "longest_client": None}
    attacks = {
        WITH: attack.model_copy(update=everyone),
        WITHOUT: attack.model_copy(update={**everyone, "options": {**attack.options, "batch_norm": 0.0}}),
    }
    config = changed(
        base,
        "Risk 2: with and without batch-norm statistics",
        data={"split": {"kind": "sizes", "sizes": SIZES, "batch_sizes": SIZES}},
        model={"normalisation": "batch"},
        training={"rounds": 1, "local_epochs": 1, "batch_norm": "train"},
        arms={UNDEFENDED: NO_DEFENSE},
        attacks=attacks,
    )
    return {"clients": Subrun(config)}


def measure(seeds: Sequence[Runs]) -> Finding:
    runs = [runs["clients"] for runs in seeds]
    weight = runs[0].config.attacks[WITH].build()
    assert isinstance(weight, GradInversion)
    return finding(
        {
            column: {
                WITH: image_values(runs, arm=UNDEFENDED, attack=WITH, column=f"{column}_whole"),
                WITHOUT: image_values(runs, arm=UNDEFENDED, attack=WITHOUT, column=f"{column}_whole"),
                MEAN_IMAGE: image_values(runs, arm=MEAN_IMAGE, attack=WITH, column=f"{column}_whole"),
            }
            for column in ("psnr", "ssim")
        },
        weight.batch_norm,
    )


def finding(scores: Mapping[str, Mapping[str, Values]], weight: float) -> Finding:
    """From PSNR and SSIM of both attacks and of the mean image, by image."""
    gains = {column: differences(values[WITH], values[WITHOUT]) for column, values in scores.items()}
    psnr, ssim = (mean_of(gains[column]) for column in ("psnr", "ssim"))
    means = {name: mean_of(values) for name, values in scores["psnr"].items()}
    blank = means[MEAN_IMAGE].mean
    beaten = means[WITH].mean > blank or means[WITHOUT].mean > blank
    sentence = (
        f"With the batch-norm statistics the same attack on the same images reaches "
        f"{signed_with_interval(psnr.mean, psnr.interval, 2)} dB of PSNR and "
        f"{signed_with_interval(ssim.mean, ssim.interval, 3)} of SSIM against the attack that leaves them out "
        f"({means[WITH].mean:.1f} and {means[WITHOUT].mean:.1f} dB; the mean image has {blank:.1f})."
        + ("" if beaten else " Neither beats the mean image, so the difference says little about a real leak.")
    )
    rows = []
    for name in (WITH, WITHOUT, MEAN_IMAGE):
        cells = [name]
        for column, digits in (("psnr", 2), ("ssim", 3)):
            measured = mean_of(scores[column][name])
            cells.append(with_interval(measured.mean, measured.interval, digits))
        rows.append(tuple(cells))
    return Finding(
        sentence,
        "PSNR with the statistics minus PSNR without, in dB, image by image",
        psnr,
        "images",
        (
            DotChart(
                "PSNR of the attack, dB",
                {name: means[name] for name in (WITH, WITHOUT)},
                (MEAN_IMAGE, blank),
            ),
        ),
        ("Attack", "PSNR (dB)", "SSIM"),
        tuple(rows),
        unit="dB",
        notes=(
            f"The two attacks differ in the weight of the statistics alone: {weight:g} against 0.",
            "Clients of one and of four images, one step of one whole batch, first round, model with batch norm.",
            "The images of one batch share their statistics: they are not quite independent.",
        ),
    )


RISK = Risk(
    2,
    "batch-norm statistics",
    "The running statistics that batch-norm layers send along tell the attacker the means and variances of the very "
    "batch it wants to rebuild.",
    "One attack on the same updates twice: once matching the statistics found in the uploaded buffers, once with the "
    "weight of that term at zero.",
    subruns,
    measure,
)
