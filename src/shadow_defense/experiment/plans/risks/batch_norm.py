"""Risk 2: batch-norm statistics make the reconstruction easier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.risk import (
    NO_DEFENSE,
    UNDEFENDED,
    Risk,
    Trials,
    Values,
    changed,
    differences,
    image_values,
    main_attack,
    mean_of,
)
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.trial import Trial
from shadow_defense.models.build import MODELS
from shadow_defense.report.records.risks import Finding, Row
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


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
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
        data={"split": {"kind": "sizes", "sizes": SIZES, "batch_sizes": SIZES}},
        model={"normalisation": "batch"},
        training={"rounds": 1, "local_epochs": 1, "batch_norm": "train"},
        arms={UNDEFENDED: NO_DEFENSE},
        attacks=attacks,
    )
    return {"clients": Trial(config, store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["clients"] for trials in seeds]
    weight = found[0].config.attacks[WITH].build()
    assert isinstance(weight, GradInversion)
    scores = {
        column: {
            WITH: image_values(found, UNDEFENDED, f"{column}_whole", attack=WITH),
            WITHOUT: image_values(found, UNDEFENDED, f"{column}_whole", attack=WITHOUT),
            MEAN_IMAGE: image_values(found, MEAN_IMAGE, f"{column}_whole", attack=WITH),
        }
        for column in ("psnr", "ssim")
    }
    return finding(scores, weight.batch_norm)


def finding(scores: Mapping[str, Mapping[str, Values]], weight: float) -> Finding:
    """From PSNR and SSIM of both attacks and of the mean image, by image; ``weight`` is that of the statistics."""
    psnr, ssim = (mean_of(differences(scores[column][WITH], scores[column][WITHOUT])) for column in ("psnr", "ssim"))
    rows = [
        Row(name, {column: mean_of(values[name]) for column, values in scores.items()})
        for name in (WITH, WITHOUT, MEAN_IMAGE)
    ]
    return Finding(value=psnr, rows=tuple(rows), more={"ssim": ssim}, facts={"weight": weight})


RISK = Risk(
    2,
    "The running statistics that batch-norm layers send along tell the attacker the means and variances of the very "
    "batch it wants to rebuild.",
    "One attack on the same updates twice: once matching the statistics found in the uploaded buffers, once with the "
    "weight of that term at zero.",
    trials,
    measure,
)
