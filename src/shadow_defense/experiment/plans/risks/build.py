"""The registry of risks, and how some of them are chosen."""

from __future__ import annotations

from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks import (
    batch_norm,
    client_size,
    cost,
    perturbation,
    pretrained,
    regions,
    rounds,
)
from shadow_defense.experiment.plans.risks.risk import Risk

RISKS: dict[int, Risk] = {
    1: perturbation.RISK,
    2: batch_norm.RISK,
    3: rounds.RISK,
    4: pretrained.RISK,
    5: client_size.RISK,
    6: cost.RISK,
    7: regions.RISK,
}


def chosen_risks(only: str | None) -> tuple[Risk, ...]:
    """The risks that a list such as ``2,5`` names, in their own order; all of them without a list.

    Raises:
        ConfigError: for anything that is no such list, naming the valid numbers.

    >>> [risk.number for risk in chosen_risks("5, 2")]
    [2, 5]
    """
    if only is None:
        return tuple(RISKS.values())
    wanted = [part.strip() for part in only.split(",")]
    valid = {str(number): risk for number, risk in RISKS.items()}
    for part in wanted:
        if part not in valid:
            listed = ", ".join(f"{number} ({risk.name})" for number, risk in RISKS.items())
            raise ConfigError(f"unknown risk '{part}': give numbers with commas between them; valid are: {listed}")
    return tuple(risk for text, risk in valid.items() if text in wanted)
