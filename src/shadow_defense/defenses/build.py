"""The registry of defenses: names, their settings, and how a client gets one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Defense, Place
from shadow_defense.defenses.censor import CENSOR_PRESETS, CensorDefense, CensorSettings
from shadow_defense.defenses.clipping import CLIPPING_PRESETS, ClippingDefense, ClippingSettings
from shadow_defense.defenses.dp_sgd import DP_SGD_PRESETS, DPSGDDefense, DPSGDSettings
from shadow_defense.defenses.local_dp import LOCAL_DP_PRESETS, LocalDPDefense, LocalDPSettings
from shadow_defense.defenses.noise import NOISE_PRESETS, NoiseDefense, NoiseSettings
from shadow_defense.defenses.outpost import OUTPOST_PRESETS, OutpostDefense, OutpostSettings
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.defenses.soteria import SOTERIA_PRESETS, SoteriaDefense, SoteriaSettings
from shadow_defense.defenses.sparsification import (
    SPARSIFICATION_PRESETS,
    SparsificationDefense,
    SparsificationSettings,
)
from shadow_defense.errors import ConfigError, DefenseError, unknown_name
from shadow_defense.generators.interface import Generator
from shadow_defense.seeds import seed_for
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import SHADOW_PRESETS, ShadowSettings, shadow_preset
from shadow_defense.validation import validated


class NoSettings(BaseModel):
    """A defense without settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Resources:
    """What a client can give its defense.

    Attributes:
        generator: the pre-trained shadow generator; None where no arm of the run asked for one.
        public: public images with labels, for defenses that need others than the client's own; may be empty.
        classes: how many there are.
        seed: the run's seed; the client's name makes the draws its own.
    """

    generator: Generator | None
    normalisation: Normalisation
    public: ImageSet
    classes: int
    client: str
    seed: int

    def seed_of(self, defense: str) -> int:
        """The seed of this client's draws for a defense."""
        return seed_for(self.seed, defense, self.client)


def _no_settings(preset: str, **options: Any) -> NoSettings:
    return validated(NoSettings, options, ConfigError, "none")


def _no_defense(settings: BaseModel, resources: Resources) -> Defense:
    return Defense()


def _shadow(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, ShadowSettings)
    if resources.generator is None:
        raise DefenseError("Shadow Defense has no generator: run the pretrain stage first or set generator.path")
    return ShadowDefense(
        ShadowGuard(
            resources.generator,
            settings,
            mean=resources.normalisation.mean,
            std=resources.normalisation.std,
            seed=resources.seed_of("guard"),
        )
    )


def _clipping(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, ClippingSettings)
    return ClippingDefense(settings)


def _sparsification(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, SparsificationSettings)
    return SparsificationDefense(settings)


def _noise(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, NoiseSettings)
    return NoiseDefense(settings, resources.seed_of("noise"))


def _local_dp(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, LocalDPSettings)
    return LocalDPDefense(settings, resources.seed_of("local-dp"))


def _dp_sgd(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, DPSGDSettings)
    return DPSGDDefense(settings, resources.seed_of("dp-sgd"))


def _soteria(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, SoteriaSettings)
    return SoteriaDefense(settings)


def _outpost(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, OutpostSettings)
    return OutpostDefense(settings, resources.seed_of("outpost"))


def _censor(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, CensorSettings)
    return CensorDefense(settings, resources.seed_of("censor"))


def presets_of(
    where: str, model: type[BaseModel], presets: Mapping[str, Mapping[str, Any]]
) -> Callable[..., BaseModel]:
    """A function from a preset's name and changes to settings of ``model``, for errors of the defense ``where``."""

    def settings(preset: str, **options: Any) -> BaseModel:
        return validated(model, {**presets[preset], **options}, ConfigError, where)

    return settings


@dataclass(frozen=True)
class Kind:
    """A registered defense: what it is, its presets, its settings from a preset and options, and its builder.

    Attributes:
        acts_on: where it can act; a defense with a setting ``place`` acts at that one.
        adapt_model: for a defense that changes the task model, for every client and for the server: from its
            settings, the agreed model and a seed to the model that is trained in its place.
    """

    summary: str
    presets: tuple[str, ...]
    settings: Callable[..., BaseModel]
    build: Callable[[BaseModel, Resources], Defense]
    acts_on: tuple[Place, ...] = ()
    needs_generator: bool = False
    adapt_model: Callable[[BaseModel, nn.Module, int], nn.Module] | None = None


DEFENSES: dict[str, Kind] = {
    "none": Kind("plain FedAvg, nothing protected", ("paper",), _no_settings, _no_defense),
    "shadow": Kind(
        "noise where a shadow generator can rebuild the image (Jiang et al. 2025)",
        tuple(SHADOW_PRESETS),
        shadow_preset,
        _shadow,
        acts_on=tuple(sorted(ShadowDefense.acts_on)),
        needs_generator=True,
    ),
    "noise": Kind(
        "Gaussian or Laplace noise on gradients or update; no guarantee of privacy",
        tuple(NOISE_PRESETS),
        presets_of("noise", NoiseSettings, NOISE_PRESETS),
        _noise,
        acts_on=("gradients", "update"),
    ),
    "local-dp": Kind(
        "update clipped, then Gaussian noise: local differential privacy, epsilon reported",
        tuple(LOCAL_DP_PRESETS),
        presets_of("local-dp", LocalDPSettings, LOCAL_DP_PRESETS),
        _local_dp,
        acts_on=("update",),
    ),
    "dp-sgd": Kind(
        "each sample's gradient clipped, then Gaussian noise: DP-SGD (Abadi et al. 2016), epsilon reported",
        tuple(DP_SGD_PRESETS),
        presets_of("dp-sgd", DPSGDSettings, DP_SGD_PRESETS),
        _dp_sgd,
        acts_on=("gradients",),
    ),
    "gradient-clipping": Kind(
        "gradients or update scaled down to a largest norm (GC)",
        tuple(CLIPPING_PRESETS),
        presets_of("gradient-clipping", ClippingSettings, CLIPPING_PRESETS),
        _clipping,
        acts_on=("gradients", "update"),
    ),
    "gradient-sparsification": Kind(
        "smallest entries of gradients or update sent as zero (GS)",
        tuple(SPARSIFICATION_PRESETS),
        presets_of("gradient-sparsification", SparsificationSettings, SPARSIFICATION_PRESETS),
        _sparsification,
        acts_on=("gradients", "update"),
    ),
    "soteria": Kind(
        "columns of a fully connected layer that say most of the image zeroed (Sun et al. 2021)",
        tuple(SOTERIA_PRESETS),
        presets_of("soteria", SoteriaSettings, SOTERIA_PRESETS),
        _soteria,
        acts_on=("gradients", "update"),
    ),
    "outpost": Kind(
        "some steps pruned, with noise by Fisher information and the weights' variance (Wang et al. 2023)",
        tuple(OUTPOST_PRESETS),
        presets_of("outpost", OutpostSettings, OUTPOST_PRESETS),
        _outpost,
        acts_on=("gradients",),
    ),
    "censor": Kind(
        "the best of some random directions orthogonal to the gradient (Zhang et al. 2025)",
        tuple(CENSOR_PRESETS),
        presets_of("censor", CensorSettings, CENSOR_PRESETS),
        _censor,
        acts_on=("gradients", "update"),
    ),
}


class DefenseSettings(BaseModel):
    """A defense by name, a preset of it, and what is changed in the preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defense: str = Field("none", description="name of a defense; the valid names are those of the registry")
    preset: str = Field("paper", description="named settings of that defense")
    options: dict[str, Any] = Field({}, description="settings that differ from the preset's")

    @model_validator(mode="after")
    def _known(self) -> DefenseSettings:
        kind = self.kind()
        if self.preset not in kind.presets:
            raise DefenseError(unknown_name(f"preset of defense '{self.defense}'", self.preset, kind.presets))
        self.settings()
        return self

    def kind(self) -> Kind:
        """The registry's entry; an unknown name raises :class:`DefenseError` listing the valid ones."""
        if self.defense not in DEFENSES:
            raise DefenseError(unknown_name("defense", self.defense, DEFENSES))
        return DEFENSES[self.defense]

    def settings(self) -> BaseModel:
        """The defense's own settings: the preset's, with the options."""
        return self.kind().settings(self.preset, **self.options)

    def acts_on(self) -> tuple[Place, ...]:
        """Where the defense acts with these settings."""
        place = getattr(self.settings(), "place", None)
        return (place,) if place else self.kind().acts_on

    def adapt_model(self, model: nn.Module, seed: int) -> nn.Module:
        """The task model as this defense has it trained: ``model`` itself, but for a defense that changes it."""
        adapt = self.kind().adapt_model
        return model if adapt is None else adapt(self.settings(), model, seed)

    def build(self, resources: Resources) -> Defense:
        """A fresh defense for one client."""
        return self.kind().build(self.settings(), resources)
