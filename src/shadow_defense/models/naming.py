"""Which models of one's own a command has named: only they are imported or loaded."""

from __future__ import annotations

import os
from pathlib import Path

from shadow_defense.errors import ModelError
from shadow_defense.registry import look_here

NAMED = "SHADOW_DEFENSE_MODEL"
"""The environment variable that holds the place of the model that was named, for every process of the command."""

FILES = {".pt2": "an exported program", ".ts": "a TorchScript file", ".pt": "a TorchScript file"}
"""What a model's file is, by its suffix."""


def is_model_file(place: str) -> bool:
    """Whether ``place`` is written as a model's file is.

    >>> [is_model_file(place) for place in ("net.pt2", "package:factory", "lenet")]
    [True, False, False]
    """
    return Path(place).suffix in FILES


def is_own(place: str) -> bool:
    """Whether ``place`` is a model of one's own: ``package.module:factory``, or a file."""
    return ":" in place or is_model_file(place)


def name_model(place: str) -> str:
    """Allow what ``place`` stands for to be imported or loaded: it is named by who runs the command.

    Returns:
        The place, of a file absolute. Modules are then also found in the working directory.
    """
    if is_model_file(place):
        place = str(Path(place).expanduser().resolve())
    else:
        look_here()
    os.environ[NAMED] = place
    return place


def look_where_named(place: str) -> None:
    """Let a module that the environment names be found in the working directory too, as if ``--model`` named it."""
    if os.environ.get(NAMED) == place:
        look_here()


def check_named(place: str) -> None:
    """Raise :class:`ModelError` where :func:`name_model` was not told ``place``, in this process or its parents.

    A configuration may come from anyone, and a factory with its options can be any call.
    """
    if os.environ.get(NAMED) != place:
        raise ModelError(
            f"model.name '{place}' runs code of its own, which no file starts alone: name it in the command too, as "
            f"--model {place}, or in the environment, as {NAMED}={place}"
        )
