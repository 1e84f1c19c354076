"""What the risks are called, and how some of them are chosen; nothing here needs torch."""

from __future__ import annotations

from shadow_defense.errors import ConfigError

NAMES = {
    1: "uniform perturbation",
    2: "batch-norm statistics",
    3: "leakage over rounds",
    4: "pre-trained models",
    5: "one-sample clients",
    6: "cost of other defenses",
    7: "regions at risk",
}
"""By number."""


def chosen_numbers(only: str | None) -> tuple[int, ...]:
    """The risks that a list such as ``2,5`` names, in their own order; all of them without a list.

    Raises:
        ConfigError: for anything that is no such list, naming the valid numbers.

    >>> chosen_numbers("5, 2")
    (2, 5)
    """
    if only is None:
        return tuple(NAMES)
    wanted = [part.strip() for part in only.split(",")]
    for part in wanted:
        if part not in map(str, NAMES):
            listed = ", ".join(f"{number} ({name})" for number, name in NAMES.items())
            raise ConfigError(f"unknown risk '{part}': give numbers with commas between them; valid are: {listed}")
    return tuple(number for number in NAMES if str(number) in wanted)
