"""What can be chosen by name: the package's own entries, those of other packages, and ``module:Name``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from shadow_defense.errors import ShadowDefenseError, unknown_name
from shadow_defense.validation import validated


class NoOptions(BaseModel):
    """Nothing can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Entry:
    """What every registry holds of a name: what users call it, one line for lists, and what can be set of it."""

    name: str
    summary: str
    options: type[BaseModel]

    def options_of(self, values: Mapping[str, Any], error: type[ShadowDefenseError], where: str) -> BaseModel:
        """The options of a configuration as :attr:`options` has them; raises ``error`` for what does not fit."""
        return validated(self.options, values, error, where)


Kind = TypeVar("Kind", bound=Entry)


class Registry(Mapping[str, Kind], Generic[Kind]):
    """Entries by name, each imported when it is first asked for: names can be listed and checked without.

    - The package's own: ``own`` says in which module each lies, as an attribute or in a tuple that is one.
    - The entry points of ``shadow_defense.<plural>`` in installed packages. A name of the package's own stays its own.
    - ``module:Name`` of any module that can be imported. It is in no list.

    What an entry point or ``module:Name`` gives must be an entry, or a class that has one as its attribute ``kind``.

    Args:
        what: an entry in words, such as ``defense``.
        entry: the class of the entries.
        own: by name the entry, or the module that has it.
        error: raised for a plugin that cannot be loaded, and by :meth:`find` for a name that is not known.

    >>> from shadow_defense.defenses.registry import DEFENSES
    >>> DEFENSES.find("noise") is DEFENSES.find("shadow_defense.defenses.noise:NOISE")
    True
    """

    def __init__(
        self, what: str, entry: type[Kind], own: Mapping[str, Kind | str], error: type[ShadowDefenseError]
    ) -> None:
        self.what, self.entry, self.error = what, entry, error
        self.group = f"shadow_defense.{what}s"
        self._own = dict(sorted(own.items()))
        self._found: dict[str, Kind] = {}

    @property
    def own(self) -> dict[str, Kind]:
        """The entries of this package, by name."""
        return {name: self.find(name) for name in self._own}

    @cached_property
    def points(self) -> dict[str, list[EntryPoint]]:
        """The entry points of other packages by name, not yet loaded."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            if point.name not in self._own:
                found.setdefault(point.name, []).append(point)
        return found

    def check(self, name: str, *others: str) -> None:
        """Raise :attr:`error` for a name that is not known, with all that are, ``others`` among them.

        Nothing is imported; whether ``module:Name`` is there is seen by :meth:`find`.
        """
        if ":" not in name and name not in (*self, *others):
            raise self.error(f"{unknown_name(self.what, name, (*self, *others))}; or module:Name of another package")

    def find(self, name: str, *others: str) -> Kind:
        """The entry of a name; raises as :meth:`check`, and where it cannot be imported."""
        if name not in self._found:
            self.check(name, *others)
            if name in self._own:
                self._found[name] = self._of_package(name, self._own[name])
            elif name in self.points:
                self._found[name] = self._of_point(name)
            else:
                self._found[name] = self._loaded(name, f"{self.what} '{name}'", lambda: imported(name))
        return self._found[name]

    def module(self, name: str) -> str:
        """The module that has the entry of a name, or its class; raises as :meth:`check`."""
        self.check(name)
        if name in self._own:
            place = self._own[name]
            return place if isinstance(place, str) else type(place).__module__
        return self.points[name][0].module if name in self.points else name.partition(":")[0]

    def _of_package(self, name: str, place: Kind | str) -> Kind:
        if not isinstance(place, str):
            return place
        values = vars(importlib.import_module(place)).values()
        entries = (each for value in values for each in (value if isinstance(value, tuple) else (value,)))
        return next(each for each in entries if isinstance(each, self.entry) and each.name == name)

    def _of_point(self, name: str) -> Kind:
        packages = [point.dist.name if point.dist else "a package" for point in self.points[name]]
        if len(packages) > 1:
            raise self.error(
                f"{self.what} '{name}' is an entry point of {' and of '.join(packages)}: uninstall one of them, or "
                "give module:Name"
            )
        [point] = self.points[name]
        where = f"{self.what} '{name}' of {packages[0]} (entry point {self.group}: {name} = {point.value})"
        return self._loaded(name, where, point.load)

    def _loaded(self, name: str, where: str, load: Callable[[], object]) -> Kind:
        try:
            found = load()
        # Whatever a stranger's module raises must not hide whose it is.
        except Exception as error:
            raise self.error(f"{where} cannot be loaded: {import_failure(error, name)}") from error
        return self._entry(name, found, where)

    def _entry(self, name: str, found: object, where: str) -> Kind:
        """The entry that was found, or that a class has; raises :attr:`error` for anything else."""
        if isinstance(found, type):
            found = getattr(found, "kind", found)
        if not isinstance(found, self.entry):
            raise self.error(
                f"{where} is {found!r}: expected a {self.entry.__name__}, or a class that has one as its attribute "
                "`kind`"
            )
        return found

    def __getitem__(self, name: str) -> Kind:
        if name not in self and ":" not in name:
            raise KeyError(name)
        return self.find(name)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self.points or name in self._found

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from sorted(self.points)

    def __len__(self) -> int:
        return len(self._own) + len(self.points)


def look_here() -> None:
    """Let modules that the command itself names be found in the working directory too.

    Behind everything that is installed, which a stray file can so not replace.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def import_failure(error: Exception, place: str) -> str:
    """Why ``module:name`` could not be imported, and what to do: a command does not look into the folder it runs in.

    >>> import_failure(ModuleNotFoundError("No module named 'mine'", name="mine"), "mine:Defense").partition("; ")[2]
    'put PYTHONPATH=. before the command where mine lies in this folder, or install it'
    """
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    module = place.partition(":")[0].partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return f"{reason}; put PYTHONPATH=. before the command where {module} lies in this folder, or install it"
    return f"{reason}; correct that package or leave it out"


def imported(place: str) -> Any:
    """What ``module:attribute`` stands for, the attribute's own attributes after dots.

    >>> imported("math:pi")
    3.141592653589793
    """
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found
