"""Every setting that a configuration can hold, for ``config schema``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.config import RunConfig
from shadow_defense.data.sources import SOURCES
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.errors import ShadowDefenseError
from shadow_defense.generators.registry import GENERATORS
from shadow_defense.models.registry import MODELS
from shadow_defense.registry import Registry

CHOSEN: tuple[tuple[Registry[Any], str], ...] = (
    (SOURCES, "data.options."),
    (MODELS, "model.options."),
    (GENERATORS, "generator.options."),
    (DEFENSES, "arms.<name>.options."),
    (ATTACKS, "attacks.<name>.options."),
)
"""What is chosen by name, and where its own options stand."""


class Setting(NamedTuple):
    """One setting; ``kind`` is its type and range."""

    key: str
    kind: str
    default: str
    description: str


def describe_schema() -> Iterator[Setting]:
    """All settings; those that only one defense, attack or other entry has bear its name, also from other packages."""
    yield from settings_of(RunConfig, "")
    for registry, prefix in CHOSEN:
        for name in registry:
            try:
                options = registry[name].options
            except ShadowDefenseError as error:
                yield Setting(f"{prefix}* ({name})", "unknown", "unknown", str(error))
            else:
                for setting in settings_of(options, prefix):
                    yield setting._replace(key=f"{setting.key} ({name})")


def settings_of(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    """The settings of a model and of the models in it, each key after ``prefix``."""
    for name, field in model.model_fields.items():
        annotation, key = field.annotation, prefix + name
        if _is_model(annotation):
            yield from settings_of(annotation, f"{key}.")
            continue
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        limits = ", ".join(map(_limit, field.metadata))
        default = field.get_default(call_default_factory=True)
        yield Setting(
            key,
            re.sub(r"(?:\b[a-z_]\w*\.)+", "", kind) + (f" [{limits}]" if limits else ""),
            "required" if default is PydanticUndefined else json.dumps(default, default=_plain),
            field.description or "",
        )
        within = f"{key}.<name>." if get_origin(annotation) is dict else f"{key}."
        for inner in filter(_is_model, get_args(annotation)):
            yield from settings_of(inner, within)


def _limit(limit: object) -> str:
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if hasattr(limit, name):
            return f"{sign} {getattr(limit, name)}"
    return str(limit)


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)
