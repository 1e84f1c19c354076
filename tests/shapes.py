"""What checks the shapes in a signature: beartype, but for functions inside of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that checks; what is defined anew with every call of another takes longer to wrap than to run."""
    return function if "<locals>" in function.__qualname__ else beartype(function)
