"""A defense as a user names it: one of the registry, or several in a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from shadow_defense.defenses.base import Defense, Place, SharedBatchNorm
from shadow_defense.defenses.combined import CombinedDefense, CombinedSettings, check_combination, part_names
from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.defenses.registry import DEFENSES, by_alias
from shadow_defense.errors import ConfigError, DefenseError, unknown_name


@dataclass(frozen=True)
class Combination(DefenseKind[CombinedSettings]):
    """Several entries of the registry as one; options are nested by part.

    A preset counts for every part that has it, the others get ``paper``.
    """

    parts: Mapping[str, DefenseKind] = field(default_factory=dict)

    def settings(self, preset: str = "paper", /, **options: Any) -> CombinedSettings:
        own: dict[str, Any] = {}
        for given, values in options.items():
            part = by_alias().get(given, given)
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
        parts=parts,
    )


def kind_of(name: str) -> DefenseKind:
    """The registry's entry of a defense, or one made of several where ``name`` has plus signs: ``shadow+clip+dp``.

    Raises:
        DefenseError: for an unknown name, listing the valid ones, or a part named twice.
    """
    parts = {part: DEFENSES.find(part, *by_alias()) for part in part_names(name)}
    return combination(parts) if len(parts) > 1 else next(iter(parts.values()))


class DefenseSettings(BaseModel):
    """A defense by name, a preset of it, and what is changed in the preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defense: str = Field(
        "none",
        description="name of a defense, or several with plus signs, such as shadow+clip+dp; module:Name for one of "
        "another package",
    )
    preset: str = Field("paper", description="named settings of that defense")
    options: dict[str, Any] = Field({}, description="settings that differ from the preset's")
    share_bn: SharedBatchNorm = Field(
        "all",
        description="what of batch norm leaves the client. all: everything; parameters: scales and shifts (SiloBN); "
        "stats: running statistics; none: nothing (FedBN). The rest each client keeps from round to round",
    )

    @model_validator(mode="after")
    def _known(self) -> DefenseSettings:
        kind = self.kind()
        if self.preset not in kind.presets:
            raise DefenseError(unknown_name(f"preset of defense '{self.defense}'", self.preset, kind.presets))
        self.settings()
        return self

    def kind(self) -> DefenseKind:
        """The registry's entry; an unknown name raises :class:`DefenseError` listing the valid ones."""
        return kind_of(self.defense)

    def settings(self) -> BaseModel:
        """The defense's own settings: the preset's, with the options."""
        return self.kind().settings(self.preset, **self.options)

    def parts(self) -> dict[str, BaseModel]:
        """The settings of each defense that this one is made of, by its name in the registry; mostly one."""
        settings = self.settings()
        return (
            dict(settings.parts) if isinstance(settings, CombinedSettings) else {part_names(self.defense)[0]: settings}
        )

    def acts_on(self) -> tuple[Place, ...]:
        """Where the defense acts with these settings."""
        places = {place for part, own in self.parts().items() for place in DEFENSES[part].places(own)}
        return tuple(place for place in get_args(Place) if place in places)

    def adapt_model(self, model: nn.Module, seed: int) -> nn.Module:
        """The task model as this defense has it trained: ``model`` itself, but for a defense that changes it."""
        adapt = self.kind().adapt_model
        return model if adapt is None else adapt(self.settings(), model, seed)

    def build(self, resources: Resources) -> Defense:
        """A fresh defense for one client; :class:`DefenseError` where it acts elsewhere than its entry says."""
        defense = self.kind().build(self.settings(), resources)
        unsaid = defense.acts_on - set(self.acts_on())
        if unsaid:
            raise DefenseError(
                f"defense '{self.defense}' acts on {', '.join(sorted(unsaid))}, which its entry does not say: add it "
                "to `acts_on` of its DefenseKind"
            )
        return defense
