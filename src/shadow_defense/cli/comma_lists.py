"""Options that take several values with commas between them."""

from __future__ import annotations

LONGEST_NUMBER = 18
"""Digits that a tensor's integers hold in any case."""


def names(text: str | None) -> list[str] | None:
    """The names of an option; None where it was not given.

    >>> names("noise, shadow,"), names(None)
    (['noise', 'shadow'], None)
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def whole_numbers(text: str | None, flag: str) -> list[int] | None:
    """The numbers of the option ``flag``, from 0 upwards; None where it was not given.

    Raises:
        ConfigError: for none, or what is no such number, or has more than 18 digits, which no tensor holds.

    >>> whole_numbers("1, 5", "--seeds")
    [1, 5]
    """
    from shadow_defense.errors import ConfigError, shown

    parts = names(text)
    if parts is None:
        return None
    if not parts or not all(part.isdecimal() and len(part) <= LONGEST_NUMBER for part in parts):
        raise ConfigError(f"{flag} {shown(text)}: expected whole numbers with commas between them, such as {flag} 1,5")
    return [int(part) for part in parts]
