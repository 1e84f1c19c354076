"""The registry of attacks, and what a user may say about one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shadow_defense.attacks.adaptive.attack import AdaptiveAttack
from shadow_defense.attacks.adaptive.settings import AdaptiveSettings
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.observation import Attack
from shadow_defense.attacks.threat_model import ThreatModel, threat_model
from shadow_defense.errors import ConfigError
from shadow_defense.registry import Registry
from shadow_defense.validation import validated

ATTACKS: Registry[AttackKind] = Registry("attack", AttackKind, "shadow_defense.attacks", ConfigError)


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
    threat_model: str = Field("informed server", description="who attacks and what it is granted")
    rounds: tuple[int, ...] | None = Field(
        None, description="rounds attacked, counted from 1; null: the first and the last"
    )
    clients: tuple[str, ...] | None = Field(None, description="clients attacked; null: all of them")
    longest_client: int | None = Field(
        None, ge=1, le=1_000_000_000, description="leave out clients with more training images than this; null: none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> AttackSettings:
        threat: ThreatModel = threat_model(self.threat_model)
        threat.require(self.build().needs, self.attack)
        return self

    def build(self) -> Attack:
        """The attack, adaptive where asked for; an unknown name raises :class:`ConfigError` listing the valid ones."""
        attack = validated(ATTACKS.find(self.attack).options, self.options, ConfigError, self.attack)
        if not isinstance(attack, Attack):
            raise ConfigError(
                f"attack '{self.attack}' is a {type(attack).__name__} without needs, steps or reconstruct: see "
                "shadow_defense.attacks.observation.Attack"
            )
        if self.adaptive is not None:
            return AdaptiveAttack(name=self.attack, inner=attack, adaptive=self.adaptive)
        return attack
