"""Errors of a user's making: one line that says what was given, what was expected, and how to correct it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Long enough for the names of a whole registry, short enough for a terminal.
MESSAGE_LIMIT = 600


def shown(text: object, limit: int = 120) -> str:
    r"""``text`` as it may stand in a message: control and direction characters escaped, cut at ``limit`` characters.

    What comes out of a file (a name, a label, a library's own message) could else move the cursor of a terminal, or
    fill it.

    >>> shown("a\x1b[2Jb"), shown("x" * 9, 5)
    ('a\\x1b[2Jb', 'xxxx…')
    """
    # One character more than fits is enough to see that it is cut; each may become ten.
    start = str(text)[: limit + 1]
    safe = "".join(character if character.isprintable() else repr(character)[1:-1] for character in start)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


class ShadowDefenseError(Exception):
    """Base of every error that a user can correct; the command line prints its one line and exits with 2.

    Whatever its message was made of, it is one line without control characters (:func:`shown`).
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(message, MESSAGE_LIMIT))


class DataError(ShadowDefenseError):
    """Images, labels, files or splits that cannot be used."""


class ModelError(ShadowDefenseError):
    """A task model that cannot be built, loaded, or used where it was given."""


class GeneratorError(ShadowDefenseError):
    """A shadow generator that cannot be built, loaded, or does not fit the images."""


class SnapshotError(ShadowDefenseError):
    """A StyleGAN3 training snapshot that cannot be read safely, or whose network cannot be rebuilt."""


class ConfigError(ShadowDefenseError):
    """A configuration that does not validate."""


class UpdateError(ShadowDefenseError):
    """A model update that does not fit the model or holds non-finite values."""


class DefenseError(ShadowDefenseError):
    """A defense that cannot do its work; no update leaves the client."""


class ThreatModelError(ShadowDefenseError):
    """An attack that would read what its threat model does not grant."""


class RunError(ShadowDefenseError):
    """A run directory that cannot be used."""


def unknown_name(kind: str, given: str, valid: Iterable[str]) -> str:
    """One line for a name that a registry does not know, with the nearest match and all valid names.

    >>> unknown_name("model", "resnet81", ["resnet18", "lenet"])
    "unknown model 'resnet81': did you mean 'resnet18'? valid are: lenet, resnet18"
    """
    names = sorted(valid)
    nearest = difflib.get_close_matches(given, names, n=1)
    hint = f" did you mean '{nearest[0]}'?" if nearest else ""
    return f"unknown {kind} '{shown(given)}':{hint} valid are: {', '.join(names)}"
