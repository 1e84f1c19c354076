"""The settings of Shadow Defense, with the presets of the authors' code and of the article."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.generators.interface import LatentSpace
from shadow_defense.shadow.noise import Placement, Schedule
from shadow_defense.shadow.pseudo_attack import ShadowWeights
from shadow_defense.validation import validated


class ShadowSettings(BaseModel):
    """Every choice that the nine steps leave open; the defaults are the paper's, but for the floor under the noise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent_space: LatentSpace = Field("z", description="step 2: space of the latent codes; z is the paper's")
    latent_pretraining: bool = Field(True, description="step 2; false keeps the random starting codes (ablation)")
    latent_iterations: int = Field(500, ge=1, le=1_000_000, description="step 2: most iterations of latent inversion")
    latent_examples: int = Field(
        0,
        ge=0,
        le=100_000,
        description="step 2: random codes, the same for all images, to whose images a linear map is fitted that says "
        "where each image starts; 0 is the paper's: a random code for each image",
    )
    latent_learning_rate: float = Field(1e-3, gt=0, description="step 2: learning rate of AdamW")
    shadow_rounds: int = Field(20, ge=0, le=1_000_000, description="step 4: rounds with a pseudo attack, r_shadow")
    attack_iterations: int = Field(5, ge=1, le=1_000_000, description="step 4: Adam iterations a batch")
    attack_learning_rate: float | None = Field(
        None, gt=0, description="step 4: null follows the batch size, as the paper does (1e-4, 1e-3, 2e-3 for 1, 4, 8)"
    )
    weights: ShadowWeights = Field(ShadowWeights(), description="step 4: weights of the shadow loss")
    vulnerability_temperature: float = Field(20.0, gt=0, description="step 5: T of the softmax over errors")
    equalise: bool = Field(True, description="step 6; false uses the map's levels as they come (ablation)")
    spread_temperature: float = Field(20.0, gt=0, description="step 6: T of the softmax over levels 0 to 255")
    momentum: float = Field(0.1, ge=0, lt=1, description="step 7: beta; 0 forgets earlier rounds (ablation)")
    foreground: bool = Field(True, description="step 8; false spares nothing (ablation)")
    foreground_share: float = Field(0.3, gt=0, le=1, description="step 8: share of pixels kept, T_cam")
    foreground_temperature: float = Field(20.0, gt=0, description="step 8: T of the softmax over the kept map")
    alpha_low: float = Field(0.1, ge=0, description="step 8: least sparing strength")
    alpha_high: float = Field(0.5, ge=0, description="step 8: greatest sparing strength")
    cam_class: Literal["label"] | int = Field(
        "label", description="step 8: class of the map: each image's label, or one class for all (authors: 1)"
    )
    cam_layer: str | None = Field(None, description="step 8: module name; null finds the last feature map")
    strength: float = Field(0.19, ge=0, description="step 9: the noise's peak as a share of the image's, in round 0")
    schedule: Schedule = Field(
        "growing",
        description="step 9: the strength grows by exp(r/R) over the rounds, stays constant, or decays by exp(-r/R); "
        "frozen: each image keeps the noise that it got first, and later rounds cost nothing",
    )
    floor: float = Field(
        0.25,
        ge=0,
        le=1,
        description="step 9: least value that counts as the image's peak, as a share of the range that images have "
        "after normalisation; 0 is the paper's formula, which gives an image no noise whose brightest pixel is near "
        "the mean",
    )
    placement: Placement = Field(
        "targeted", description="targeted: where the map says; shuffled and uniform: controls of the same energy"
    )
    generator_decay: float = Field(0.5, ge=0, le=1, description="after step 9: share of the old generator that stays")


SHADOW_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"floor": 0.0},
    # Class 1 for every image, whatever its label.
    "authors": {"floor": 0.0, "cam_class": 1},
    "article": {"floor": 0.0, "vulnerability_temperature": 1.0, "momentum": 0.9},
}


def shadow_preset(name: str, **changes: Any) -> ShadowSettings:
    """The settings of a preset, with some of them changed.

    >>> shadow_preset("article").momentum
    0.9
    """
    if name not in SHADOW_PRESETS:
        raise ConfigError(unknown_name("Shadow preset", name, SHADOW_PRESETS))
    return validated(ShadowSettings, {**SHADOW_PRESETS[name], **changes}, ConfigError, "shadow")
