"""Several defenses of the registry as one entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny
from torch import nn

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.combined import CombinedDefense, check_combination
from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.defenses.places import Place
from shadow_defense.defenses.registry import ALIASES
from shadow_defense.errors import ConfigError, unknown_name


class CombinedSettings(BaseModel):
    """The settings of each part, by its name, in the order in which they act."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: dict[str, SerializeAsAny[BaseModel]] = Field(description="two defenses or more")


@dataclass(frozen=True)
class Combination(DefenseKind[CombinedSettings]):
    """Several entries of the registry as one; options are nested by part.

    A preset counts for every part that has it, the others get ``paper``.
    """

    parts: Mapping[str, DefenseKind] = field(default_factory=dict)

    def settings(self, preset: str = "paper", /, **options: Any) -> CombinedSettings:
        own: dict[str, Any] = {}
        for given, values in options.items():
            part = ALIASES.get(given, given)
            if part in own:
                raise ConfigError(f"options name '{part}' twice, once as '{given}': nest all of its settings under one")
            own[part] = values
        for part, values in own.items():
            if part not in self.parts:
                raise ConfigError(unknown_name("part of the combination", part, self.parts))
            if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
                raise ConfigError(f"options.{part} = {values!r}: expected this part's own settings, by name")
        chosen = {
            part: kind.settings(preset if preset in kind.presets else "paper", **own.get(part, {}))
            for part, kind in self.parts.items()
        }
        check_combination({part: kind.places(chosen[part]) for part, kind in self.parts.items()}, chosen)
        return CombinedSettings(parts=chosen)


def combination(parts: Mapping[str, DefenseKind]) -> Combination:
    """The entry of several defenses that act one after another, by their names."""

    def build(settings: CombinedSettings, resources: Resources) -> Defense:
        return CombinedDefense({part: kind.build(settings.parts[part], resources) for part, kind in parts.items()})

    def adapt(settings: CombinedSettings, model: nn.Module, seed: int) -> nn.Module:
        for part, kind in parts.items():
            model = model if kind.adapt_model is None else kind.adapt_model(settings.parts[part], model, seed)
        return model

    return Combination(
        "+".join(parts),
        "; then ".join(kind.summary for kind in parts.values()),
        CombinedSettings,
        build,
        {preset: {} for kind in parts.values() for preset in kind.presets},
        acts_on=tuple(place for place in get_args(Place) if any(place in kind.acts_on for kind in parts.values())),
        needs_generator=any(kind.needs_generator for kind in parts.values()),
        adapt_model=adapt,
        draws_once=any(kind.draws_once for kind in parts.values()),
        parts=parts,
    )
