"""What checks the shapes in signatures: beartype by jaxtyping's import hook, for a function when it is first called.

Built where functions are defined, as the hook does, checkers take a fifth of what a process imports, and of most it
never calls the function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import jaxtyping

_at_once = jaxtyping.jaxtyped


def check_shapes(modules: Sequence[str]) -> None:
    """Have every function and record of these modules check its shapes; before they are imported."""
    jaxtyping.jaxtyped = _when_called
    jaxtyping.install_import_hook(modules, "beartype.beartype")


def _when_called(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """What the hook decorates with, in place of :func:`jaxtyping.jaxtyped`."""

    def decorated(given: Any) -> Any:
        if not isinstance(given, FunctionType):
            return _at_once(given, typechecker=typechecker)
        # What is defined anew with every call of another takes longer to wrap than to run.
        return given if "<locals>" in given.__qualname__ else _waiting(given, typechecker)

    return decorated


def _waiting(function: FunctionType, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    checking: Callable[..., Any] | None = None

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal checking
        if jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **named)
        checking = checking or _at_once(function, typechecker=typechecker)
        return checking(*arguments, **named)

    return called
