"""The registry of defenses: what each module of this package says of its own, and what other packages add."""

from __future__ import annotations

from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.errors import DefenseError
from shadow_defense.registry import Registry

DEFENSES: Registry[DefenseKind] = Registry("defense", DefenseKind, "shadow_defense.defenses", DefenseError)


def by_alias() -> dict[str, str]:
    """The defenses that have a short name, by it."""
    return {kind.alias: kind.name for kind in DEFENSES.own.values() if kind.alias}
