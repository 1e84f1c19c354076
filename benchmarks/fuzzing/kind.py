"""What a kind of input is: something made from random draws in a folder of its own, and the call that is given it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        what: how it differs from a valid one, in words.
        give: calls the project with it; what it returns is thrown away, what it asserts is part of the judgement.
    """

    what: str
    give: Callable[[], object]


Make = Callable[[np.random.Generator, Path], Input]
"""Makes an input in an empty folder; everything that it draws comes from the generator."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        make: makes one.
        modules: imported before the worker begins, so that no input is judged on their imports.
        prepare: what else is done once: what all inputs begin from is written into the folder.
    """

    make: Make
    modules: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda _: None


def pick(random: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options; NumPy's own choice would make arrays of them."""
    return options[int(random.integers(len(options)))]
