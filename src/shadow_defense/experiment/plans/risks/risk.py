"""What a risk is: a claim, the trials that test it, and the numbers that they end in; how trials come from a base,
and how their results are read, seed by seed and image by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.config import RunConfig, config_from
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.analysis import Image, by_image, compared
from shadow_defense.experiment.plans.risks.names import NAMES
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.experiment.tasks.training import final_model
from shadow_defense.experiment.trial import Trial
from shadow_defense.metrics.confidence import Estimate, paired_difference
from shadow_defense.metrics.intervals import f1_difference
from shadow_defense.metrics.utility import predict
from shadow_defense.report.records.risks import Finding

UNDEFENDED = "fedavg"

NO_DEFENSE = DefenseSettings()

ATTACK = "attack"
"""The name under which trials keep the base's first attack."""

Trials = Mapping[str, Trial]
"""The trials of one seed, by label."""


@dataclass(frozen=True)
class Risk:
    """One of the risks. What its numbers are called is in :mod:`shadow_defense.report.sentences.risks`.

    Attributes:
        number: in the article's order, from 1.
        claim: the article's, in our words.
        experiment: how it is tested, in a sentence or two.
        trials: from the base configuration (whose seed is the trials') to the trials by label, in the order in which
            they are carried out. Raises :class:`ConfigError` for a base that it cannot be tested on.
        measure: from the finished trials of every seed to the finding.
    """

    number: int
    claim: str
    experiment: str
    trials: Callable[[RunConfig, Store], dict[str, Trial]]
    measure: Callable[[Sequence[Trials]], Finding]

    @property
    def name(self) -> str:
        """In a few words."""
        return NAMES[self.number]


def changed(base: RunConfig, **groups: Any) -> RunConfig:
    """The base with other values: a dict changes the keys of its group, ``arms`` and ``attacks`` are replaced.

    Without ``arms`` nothing is defended.
    """
    values = base.as_dict()
    for name, value in {"arms": {UNDEFENDED: NO_DEFENSE}, **groups}.items():
        if name in ("arms", "attacks"):
            values[name] = {key: settings.model_dump(mode="json") for key, settings in value.items()}
        elif isinstance(value, dict):
            values[name] = {**values[name], **value}
        else:
            values[name] = value
    return config_from(values)


def main_attack(base: RunConfig, rounds: Sequence[int], **changes: Any) -> AttackSettings:
    """The base's first attack at other rounds (counted from 1).

    Raises:
        ConfigError: when the base has no attack.
    """
    if not base.attacks:
        raise ConfigError("attacks is empty: the risks take the first one of the base, such as `ig: {}`")
    first = next(iter(base.attacks.values()))
    return first.model_copy(update={"rounds": tuple(rounds), **changes})


def shadow_arm(base: RunConfig, **options: Any) -> DefenseSettings:
    """The base's first arm with Shadow Defense, or the paper's settings; with other options."""
    own = next((arm for arm in base.arms.values() if arm.defense == "shadow"), DefenseSettings(defense="shadow"))
    return DefenseSettings(defense="shadow", preset=own.preset, options={**own.options, **options})


def spread_rounds(rounds: int, most: int) -> tuple[int, ...]:
    """At most ``most`` (2 or more) rounds, evenly from 1 to ``rounds``.

    >>> spread_rounds(10, 4), spread_rounds(2, 4), spread_rounds(1, 4)
    ((1, 4, 7, 10), (1, 2), (1,))
    """
    return tuple(sorted({round(1 + (rounds - 1) * step / (most - 1)) for step in range(most)}))


COLUMNS = ("psnr", "ssim")

Rebuilt = Mapping[Image, Mapping[str, float]]
"""Of each image what is measured of its reconstruction, such as :data:`COLUMNS` over the whole image."""


@lru_cache(maxsize=64)
def scores_of(trial: Trial) -> list[Score]:
    """Of a finished trial, read once for all that is measured on them."""
    return trial.scores()


def rebuilt(
    trials: Sequence[Trial], arm: str = UNDEFENDED, *, attack: str = ATTACK, round: int | None = None
) -> dict[Image, dict[str, float]]:
    """:data:`COLUMNS` of each image; the mean over its attacked rounds, or those of one ``round``.

    Args:
        trials: one a seed.
        round: counted from 1, as people do.
    """
    index = None if round is None else round - 1
    found = by_image([score for trial in trials for score in scores_of(trial)], arm, attack, index)
    return {
        image: {column: metrics[f"{column}_whole"] for column in COLUMNS if f"{column}_whole" in metrics}
        for image, metrics in found.items()
    }


def means(images: Rebuilt, names: Sequence[str] = COLUMNS) -> dict[str, Estimate]:
    """The mean of each name over the images."""
    return compared(images, {}, names)[0]


def differences(first: Rebuilt, second: Rebuilt, names: Sequence[str] = COLUMNS) -> dict[str, Estimate]:
    """The mean of ``first - second`` over the images that both have."""
    return compared(first, second, names)[1]


def final_f1(trial: Trial, arm: str) -> float:
    """Macro F1 of an arm's final model on the test images."""
    return float(trial.history(arm)[-1].test["f1_macro"] or 0.0)


def f1_change(trials: Sequence[Trial], arm: str, reference: str) -> Estimate:
    """Macro F1 of one arm minus another's: over seeds where there are several, else over the test images."""
    if len(trials) > 1:
        values = [[final_f1(trial, name) for trial in trials] for name in (arm, reference)]
        return paired_difference(*values)
    (trial,) = trials
    data = trial.dataset
    models = [final_model(trial, name, trial.store.place(trial.trainings[name])) for name in (arm, reference)]
    first, second = (predict(model, data.test, data.normalisation).argmax(dim=1) for model in models)
    return f1_difference(first, second, data.test.labels, data.classes, trial.config.seed)
