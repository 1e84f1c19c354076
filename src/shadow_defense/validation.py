"""Settings checked against their model, with one readable line for what is wrong."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError, ValidationInfo

from shadow_defense.errors import ConfigError, ShadowDefenseError, shown

Settings = TypeVar("Settings", bound=BaseModel)

NAMES_ONLY = "names only"


def names_only(info: ValidationInfo) -> bool:
    """Whether what a registry's entry is chosen with is left unchecked, so that none is imported (and no torch)."""
    return bool(info.context and info.context.get(NAMES_ONLY))


def validated(
    model: type[Settings],
    values: Mapping[str, Any],
    error: type[ShadowDefenseError],
    where: str = "",
    *,
    names: bool = False,
) -> Settings:
    """Build ``model`` from ``values``; what does not fit raises ``error`` with one line.

    The line names the key, the value, what is expected, and for an unknown key the nearest known one.

    Args:
        where: what the values are, put before the key's own path.
        names: see :func:`names_only`.
    """
    try:
        return model.model_validate(dict(values), context={NAMES_ONLY: names})
    except ValidationError as failure:
        raise error(_explain(failure, model, where)) from failure


def one_by_one(values: Any, check: Callable[[Any], Any], info: Any) -> Any:
    """A wrap validator of a field that holds settings by name: an error says in which of them it is."""
    if not isinstance(values, Mapping):
        return check(values)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        try:
            checked |= check({name: value})
        except ShadowDefenseError as error:
            raise type(error)(f"{info.field_name}.{shown(name)}: {error}") from error
    return checked


def check_called(where: str, entries: Mapping[str, BaseModel], key: str, known: Container[str]) -> None:
    """Refuse an entry that is called as one of ``known`` and leaves ``key``, which says what it is, at another default.

    Raises:
        ConfigError: for `dp-sgd: {}`, which would be no defense.
    """
    for name, entry in entries.items():
        default = getattr(entry, key)
        if name in known and name != default and key not in entry.model_fields_set:
            raise ConfigError(f"{where}.{name} says no {key}, which makes it '{default}': add `{key}: {name}`")


def _explain(failure: ValidationError, model: type[BaseModel], where: str) -> str:
    first, *others = failure.errors(include_url=False)
    *path, last = first["loc"] or (None,)
    # pydantic names the branches of a union too, such as tuple[int, ...]; an unknown key may look like one.
    location = [part for part in path if not (isinstance(part, str) and "[" in part)]
    if last is not None and (first["type"] == "extra_forbidden" or "[" not in str(last)):
        location.append(last)
    key = ".".join([where, *map(str, location)] if where else map(str, location)) or "the configuration"
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f" did you mean '{nearest[0]}'?" if nearest else ""
        expected = f"known here are: {', '.join(sorted(known))}" if known else "nothing can be set here; leave it out"
        line = f"unknown key '{shown(key)}':{hint} {expected}"
    elif first["type"] == "missing":
        line = f"{key} is missing: give it"
    else:
        line = f"{shown(key)} = {shown(repr(first['input']))}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return line + (f" (and {len(others)} more)" if others else "")


def _fields_at(model: type[BaseModel], location: list[Any]) -> list[str]:
    """The field names of the settings model that lies at ``location`` below ``model``."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        if get_origin(current) in (Union, types.UnionType):
            current = next(
                (option for option in get_args(current) if isinstance(option, type) and issubclass(option, BaseModel)),
                None,
            )
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
