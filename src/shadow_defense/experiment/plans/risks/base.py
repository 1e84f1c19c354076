"""From the base configuration to that of a trial: what the experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.config import RunConfig, config_from
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError

UNDEFENDED = "fedavg"

NO_DEFENSE = DefenseSettings()

ATTACK = "attack"
"""The name under which trials keep the base's first attack."""


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
