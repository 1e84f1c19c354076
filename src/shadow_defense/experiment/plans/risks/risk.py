"""What a risk is: a claim, the trials that test it, and the numbers that they end in; how trials come from a base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.config import RunConfig, config_from
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.names import NAMES
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.trial import Trial
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
    """The base with other values: a dict changes the keys of its group, ``arms`` and ``attacks`` are replaced."""
    values = base.as_dict()
    for name, value in groups.items():
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
