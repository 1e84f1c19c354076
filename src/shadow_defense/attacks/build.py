"""The registry of attacks, and what a user may say about one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.threat_model import Knowledge, ThreatModel, threat_model
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.progress import Task
from shadow_defense.validation import validated


@runtime_checkable
class Attack(Protocol):
    """An attack with its settings: it says what it needs and turns an observation into a reconstruction."""

    needs: ClassVar[frozenset[Knowledge]]

    def steps(self) -> int: ...

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction: ...


@dataclass(frozen=True)
class Kind:
    """A registered attack: what it is, and its class (a pydantic model whose fields are its settings)."""

    summary: str
    attack: type[InvertingGradients] | type[GradInversion]


ATTACKS: dict[str, Kind] = {
    "inverting-gradients": Kind("cosine matching with total variation (Geiping et al. 2020)", InvertingGradients),
    "gradinversion": Kind(
        "update and batch-norm matching from a template (Hatamizadeh et al. 2023), differentiable", GradInversion
    ),
}


class AttackSettings(BaseModel):
    """An attack by name, its options, its threat model, and which updates it is tried on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attack: str = Field("inverting-gradients", description="name of an attack; the valid names are the registry's")
    options: dict[str, Any] = Field({}, description="settings that differ from the attack's defaults")
    threat_model: str = Field("informed server", description="who attacks and what it is granted")
    rounds: tuple[int, ...] | None = Field(
        None, description="rounds attacked, counted from 1; null: the first and the last"
    )
    clients: tuple[str, ...] | None = Field(None, description="clients attacked; null: all of them")
    longest_client: int | None = Field(
        None, ge=1, description="leave out clients with more training images than this; null: none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> AttackSettings:
        threat: ThreatModel = threat_model(self.threat_model)
        threat.require(self.build().needs, self.attack)
        return self

    def build(self) -> Attack:
        """The attack; an unknown name raises :class:`ConfigError` listing the valid ones."""
        if self.attack not in ATTACKS:
            raise ConfigError(unknown_name("attack", self.attack, ATTACKS))
        return validated(ATTACKS[self.attack].attack, self.options, ConfigError, self.attack)
