"""The registry of attacks, and what a user may say about one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shadow_defense.attacks.adaptive.attack import AdaptiveAttack
from shadow_defense.attacks.adaptive.settings import AdaptiveSettings
from shadow_defense.attacks.dlg import DLG
from shadow_defense.attacks.fully_connected_leak import FullyConnectedLeak
from shadow_defense.attacks.ggl import GGL
from shadow_defense.attacks.gias import GIAS
from shadow_defense.attacks.gifd import GIFD
from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.group_consistency import GroupConsistency
from shadow_defense.attacks.idlg import IDLG
from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.learning_to_invert import LearningToInvert
from shadow_defense.attacks.model_based import ModelBased
from shadow_defense.attacks.observation import Attack
from shadow_defense.attacks.r_gap import RGAP
from shadow_defense.attacks.robbing_the_fed import RobbingTheFed
from shadow_defense.attacks.rog import ROG
from shadow_defense.attacks.threat_model import ThreatModel, threat_model
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.validation import validated

ANY_MODEL = "any"


@dataclass(frozen=True)
class Kind:
    """A registered attack: what it is, its class, and which global models it can be run on.

    Attributes:
        attack: an :class:`Attack`, and a pydantic model whose fields are its settings.
        model: what the global model must be like; other models are refused with :class:`ModelError`.
    """

    summary: str
    attack: type[BaseModel]
    model: str = ANY_MODEL


ATTACKS: dict[str, Kind] = {
    "inverting-gradients": Kind("cosine matching with total variation (Geiping et al. 2020)", InvertingGradients),
    "gradinversion": Kind(
        "update and batch-norm matching from a template (Hatamizadeh et al. 2023), differentiable", GradInversion
    ),
    "gradinversion-group": Kind(
        "several seeds drawn to their consensus, with batch-norm statistics (Yin et al. 2021)", GroupConsistency
    ),
    "dlg": Kind("squared differences by L-BFGS, images and labels together (Zhu et al. 2019)", DLG),
    "idlg": Kind("squared differences by L-BFGS, labels read off the last layer (Zhao et al. 2020)", IDLG),
    "fully-connected-leak": Kind(
        "the ratio of a fully connected layer's weight and bias updates (Phong et al. 2018)",
        FullyConnectedLeak,
        "opens with a fully connected layer that has a bias",
    ),
    "r-gap": Kind(
        "layer by layer from the last to the image, by linear equations (Zhu and Blaschko 2021)",
        RGAP,
        "a plain chain of convolutions and fully connected layers with invertible activations, last bias included",
    ),
    "gias": Kind("a generator's latent code, then its weights, image by image (Jeon et al. 2021)", GIAS),
    "model-based": Kind(
        "the paper's: latent code, then the shadow generator's weights, with batch-norm statistics", ModelBased
    ),
    "ggl": Kind("a generator's latent code alone, by Adam or CMA-ES (Li et al. 2022)", GGL),
    "gifd": Kind("latent code, then the generator's features layer by layer (Fang et al. 2023)", GIFD),
    "learning-to-invert": Kind(
        "a network that learned to read images off simulated updates (Wu et al. 2023)", LearningToInvert
    ),
    "rog": Kind("small images, enlarged before they are matched (Yue et al. 2023)", ROG),
    "robbing-the-fed": Kind(
        "images read off a layer that the server planted (Fowl et al. 2022)",
        RobbingTheFed,
        "an ImprintedModel, which the server made of the agreed one",
    ),
}


class AttackSettings(BaseModel):
    """An attack by name, its options, its threat model, and which updates it is tried on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attack: str = Field("inverting-gradients", description="name of an attack; the valid names are the registry's")
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
        if self.attack not in ATTACKS:
            raise ConfigError(unknown_name("attack", self.attack, ATTACKS))
        attack = validated(ATTACKS[self.attack].attack, self.options, ConfigError, self.attack)
        if self.adaptive is not None:
            attack = AdaptiveAttack(name=self.attack, inner=attack, adaptive=self.adaptive)
        assert isinstance(attack, Attack)
        return attack
