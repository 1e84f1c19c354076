"""Risk 2: batch-norm statistics make the reconstruction easier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.risk import (
    Rebuilt,
    Risk,
    Trials,
    changed,
    differences,
    main_attack,
    means,
    rebuilt,
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
        attacks=attacks,
    )
    return {"clients": Trial(config, store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["clients"] for trials in seeds]
    weight = found[0].config.attacks[WITH].build()
    assert isinstance(weight, GradInversion)
    found_by = {
        WITH: rebuilt(found, attack=WITH),
        WITHOUT: rebuilt(found, attack=WITHOUT),
        MEAN_IMAGE: rebuilt(found, MEAN_IMAGE, attack=WITH),
    }
    return finding(found_by, weight.batch_norm)


def finding(images: Mapping[str, Rebuilt], weight: float) -> Finding:
    """From both attacks and the mean image, by image; ``weight`` is that of the statistics."""
    gain = differences(images[WITH], images[WITHOUT])
    rows = tuple(Row(name, means(images[name])) for name in (WITH, WITHOUT, MEAN_IMAGE))
    return Finding(value=gain["psnr"], rows=rows, more={"ssim": gain["ssim"]}, facts={"weight": weight})


RISK = Risk(
    2,
    "The running statistics that batch-norm layers send along tell the attacker the means and variances of the very "
    "batch it wants to rebuild.",
    "One attack on the same updates twice: once matching the statistics found in the uploaded buffers, once with the "
    "weight of that term at zero.",
    trials,
    measure,
)
