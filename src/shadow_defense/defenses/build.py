"""A defense as a user names it: one of the registry, or several in a row."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.defenses.places import Place, SharedBatchNorm
from shadow_defense.defenses.registry import ALIASES, DEFENSES, part_names
from shadow_defense.errors import DefenseError, unknown_name
from shadow_defense.validation import names_only

if TYPE_CHECKING:
    from torch import nn

    from shadow_defense.data.dataset import ImageSet, Normalisation
    from shadow_defense.defenses.base import Defense


def kind_of(name: str) -> DefenseKind:
    """The registry's entry of a defense, or one made of several where ``name`` has plus signs: ``shadow+clip+dp``.

    Raises:
        DefenseError: for an unknown name, listing the valid ones, or a part named twice.
    """
    parts = {part: DEFENSES.find(part, *ALIASES) for part in part_names(name)}
    if len(parts) == 1:
        return next(iter(parts.values()))
    from shadow_defense.defenses.combination import combination

    return combination(parts)


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
    def _known(self, info: ValidationInfo) -> DefenseSettings:
        if names_only(info):
            for part in part_names(self.defense):
                DEFENSES.check(part, *ALIASES)
            return self
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
        names, settings = part_names(self.defense), self.settings()
        if len(names) == 1:
            return {names[0]: settings}
        from shadow_defense.defenses.combination import CombinedSettings

        assert isinstance(settings, CombinedSettings)
        return dict(settings.parts)

    def acts_on(self) -> tuple[Place, ...]:
        """Where the defense acts with these settings."""
        places = {place for part, own in self.parts().items() for place in DEFENSES[part].places(own)}
        return tuple(place for place in get_args(Place) if place in places)

    @property
    def on_images_alone(self) -> bool:
        """Whether protected images can be handed to an attacker: the defense acts on images alone, and mixes none."""
        return self.acts_on() == ("batch",) and not self.kind().mixes_labels

    def adapt_model(self, model: nn.Module, seed: int) -> nn.Module:
        """The task model as this defense has it trained: ``model`` itself, but for a defense that changes it."""
        adapt = self.kind().adapt_model
        return model if adapt is None else adapt(self.settings(), model, seed)

    def whole_model(self, model: nn.Module, seed: int, public: ImageSet, normalisation: Normalisation) -> nn.Module:
        """As :meth:`adapt_model` gives it, behind the maps that its parts put before a model."""
        from torch import nn

        whole = self.adapt_model(model, seed)
        for part, own in self.parts().items():
            make = DEFENSES[part].goes_before
            before = None if make is None else make(own, public, normalisation)
            whole = whole if before is None else nn.Sequential(OrderedDict(before=before, model=whole))
        return whole

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
