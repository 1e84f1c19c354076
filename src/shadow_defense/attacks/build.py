"""What a user may say about an attack, and the attack of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from shadow_defense.attacks.adaptive.settings import AdaptiveSettings
from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.attacks.threat_model import ThreatModel, threat_model
from shadow_defense.errors import ConfigError
from shadow_defense.validation import names_only, validated

if TYPE_CHECKING:
    from shadow_defense.attacks.observation import Attack, Observation, Reconstruction
    from shadow_defense.progress import Task


class AttackSettings(BaseModel):
    """An attack by name, its options, its threat model, and which updates it is tried on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attack: str = Field("inverting-gradients", description="name of an attack, or module:Name of another package")
    options: dict[str, Any] = Field({}, description="settings that differ from the attack's defaults")
    adaptive: AdaptiveSettings | None = Field(
        None,
        description="fits the attack to the defense, which the threat model must grant (adaptive server); {}: with "
        "the defaults, null: not at all",
    )
    contrast: bool = Field(
        True,
        description="where a search is left no sign of the images' contrast, give them what images usually have; "
        "false: leave them where it ended",
    )
    threat_model: str = Field("informed server", description="who attacks and what it is granted")
    rounds: tuple[int, ...] | None = Field(
        None, description="rounds attacked, counted from 1; null: the first and the last"
    )
    clients: tuple[str, ...] | None = Field(None, description="clients attacked; null: all of them")
    longest_client: int | None = Field(
        None, ge=1, le=1_000_000_000, description="leave out clients with more training images than this; null: none"
    )

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> AttackSettings:
        threat: ThreatModel = threat_model(self.threat_model)
        if names_only(info):
            ATTACKS.check(self.attack)
            return self
        threat.require(self.build().needs, self.attack)
        return self

    def build(self) -> Attack:
        """The attack, adaptive where asked for; an unknown name raises :class:`ConfigError` listing the valid ones."""
        from shadow_defense.attacks.adaptive.attack import AdaptiveAttack
        from shadow_defense.attacks.observation import Attack

        attack = validated(ATTACKS.find(self.attack).options, self.options, ConfigError, self.attack)
        if not isinstance(attack, Attack):
            raise ConfigError(
                f"attack '{self.attack}' is a {type(attack).__name__} without needs, steps or reconstruct: see "
                "shadow_defense.attacks.observation.Attack"
            )
        if self.adaptive is not None:
            return AdaptiveAttack(name=self.attack, inner=attack, adaptive=self.adaptive, contrast=self.sets_contrast)
        return attack

    def resolved(self) -> dict[str, Any]:
        """All settings of the attack, those too that are as they always are."""
        settings = self.build().model_dump(mode="json")  # type: ignore[attr-defined]
        return {**settings, "contrast": True} if self.sets_contrast else settings

    @property
    def sets_contrast(self) -> bool:
        """Whether its images are given the usual contrast where nothing tells theirs: those of a search of pixels."""
        return self.contrast and ATTACKS.find(self.attack).searches_pixels

    @property
    def needs_generator(self) -> bool:
        """Whether the attack starts from a generator."""
        return "generator" in self.build().needs

    def earlier_rounds(self, attacked: int) -> range:
        """The rounds (0-based) before ``attacked`` that an adaptive attack uses, as far as there are any."""
        used = 1 if self.adaptive is None else self.adaptive.rounds
        return range(max(attacked - used + 1, 0), attacked)


def reconstruct(settings: AttackSettings, observation: Observation, seed: int, task: Task) -> Reconstruction:
    """Run an attack, repeatably also where the attacked model draws from the global state (dropout, PRECODE).

    Who knows the defense sets the contrast before it does anything else with the images; any other attack's are given
    it here. What comes back is in the host's memory.
    """
    import torch

    from shadow_defense.attacks.contrast import is_left_to_chance, with_contrast

    attack = settings.build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = attack.reconstruct(observation, seed=seed, task=task)
    if settings.adaptive is None and settings.sets_contrast and is_left_to_chance(attack.needs, observation):
        found = with_contrast(found, observation, observation.usual_contrast, seed)
    return replace(found, images=found.images.cpu(), labels=found.labels.cpu())
