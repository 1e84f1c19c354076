"""What one process has measured, and the processes that it starts need not measure again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

_kinds: dict[str, HandedOn[Any]] = {}
_given: dict[str, Mapping[str, Any]] = {}
"""What was taken over, also of kinds that this process has not imported yet."""


class HandedOn(Generic[Result]):
    """The latest results of a kind, each made once; a worker process begins with those of its parent.

    Args:
        what: the kind, which a process has once.
        most: results that are kept.

    >>> squares = HandedOn("squares", most=1)
    >>> squares.of("3", lambda: 9), squares.of("3", lambda: 0), squares.of("2", lambda: 4), squares.of("3", lambda: 0)
    (9, 9, 4, 0)
    """

    def __init__(self, what: str, most: int) -> None:
        self.most, self.results = most, dict[str, Result](_given.get(what, {}))
        _kinds[what] = self

    def of(self, name: str, make: Callable[[], Result]) -> Result:
        """The result of that name, made where there is none."""
        if name not in self.results:
            if len(self.results) >= self.most:
                del self.results[next(iter(self.results))]
            self.results[name] = make()
        return self.results[name]


def results_by_kind() -> dict[str, dict[str, Any]]:
    """All results of this process, for those that it starts."""
    return {what: dict(kind.results) for what, kind in _kinds.items()}


def take_over(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Begin with the results of the process that started this one."""
    _given.update(results)
    for what, kind in _kinds.items():
        kind.results.update(results.get(what, {}))
