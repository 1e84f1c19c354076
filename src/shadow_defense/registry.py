"""What can be chosen by name: the package's own entries, those of other packages, and ``module:Name``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
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
    """Entries by name, found when one is first asked for.

    - ``package``: the public entries of its modules, or tuples of them; to add one, write it into such a module.
    - The entry points of ``shadow_defense.<plural>`` in installed packages. A name of the package's own stays its own.
    - ``module:Name`` of any module that can be imported. It is in no list.

    What an entry point or ``module:Name`` gives must be an entry, or a class that has one as its attribute ``kind``.

    Args:
        what: an entry in words, such as ``defense``.
        entry: the class of the entries.
        package: whose modules hold the own ones.
        error: raised for a plugin that cannot be loaded, and by :meth:`find` for a name that is not known.

    >>> from shadow_defense.defenses.registry import DEFENSES
    >>> DEFENSES.find("noise") is DEFENSES.find("shadow_defense.defenses.noise:NOISE")
    True
    """

    def __init__(self, what: str, entry: type[Kind], package: str, error: type[ShadowDefenseError]) -> None:
        self.what, self.entry, self.package, self.error = what, entry, package, error
        self.group = f"shadow_defense.{what}s"
        self._plugins: dict[str, Kind] = {}

    @cached_property
    def own(self) -> dict[str, Kind]:
        """The entries of this package, by name."""
        found: dict[str, Kind] = {}
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            for attribute, value in vars(importlib.import_module(f"{self.package}.{module.name}")).items():
                for each in value if isinstance(value, tuple) else (value,):
                    if isinstance(each, self.entry) and not attribute.startswith("_"):
                        found[each.name] = each
        return dict(sorted(found.items()))

    @cached_property
    def points(self) -> dict[str, list[EntryPoint]]:
        """The entry points of other packages by name, not yet loaded."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            if point.name not in self.own:
                found.setdefault(point.name, []).append(point)
        return found

    def find(self, name: str, *others: str) -> Kind:
        """The entry of a name; one that is not known raises :attr:`error` with all that are, ``others`` among them."""
        if name in self.own:
            return self.own[name]
        if name not in self._plugins:
            if ":" in name:
                module, _, attribute = name.partition(":")
                self._plugins[name] = self._loaded(
                    f"{self.what} '{name}'", lambda: _attribute(importlib.import_module(module), attribute)
                )
            elif name in self.points:
                self._plugins[name] = self._of_point(name)
            else:
                raise self.error(
                    f"{unknown_name(self.what, name, (*self, *others))}; or module:Name of another package"
                )
        return self._plugins[name]

    def _of_point(self, name: str) -> Kind:
        packages = [point.dist.name if point.dist else "a package" for point in self.points[name]]
        if len(packages) > 1:
            raise self.error(
                f"{self.what} '{name}' is an entry point of {' and of '.join(packages)}: uninstall one of them, or "
                "give module:Name"
            )
        [point] = self.points[name]
        where = f"{self.what} '{name}' of {packages[0]} (entry point {self.group}: {name} = {point.value})"
        return self._loaded(where, point.load)

    def _loaded(self, where: str, load: Callable[[], object]) -> Kind:
        try:
            found = load()
        # Whatever a stranger's module raises must not hide whose it is.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise self.error(f"{where} cannot be loaded: {reason}; mend that package or leave it out") from error
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
        return name in self.own or name in self.points or name in self._plugins

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from sorted(self.points)

    def __len__(self) -> int:
        return len(self.own) + len(self.points)


def _attribute(found: object, path: str) -> object:
    for part in path.split("."):
        found = getattr(found, part)
    return found
