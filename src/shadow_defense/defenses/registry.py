"""The registry of defenses: one entry each, with how a client gets it."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from shadow_defense.defenses.ats import ATS_PRESETS, ATSDefense, ATSSettings
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.censor import CENSOR_PRESETS, CensorDefense, CensorSettings
from shadow_defense.defenses.clipping import CLIPPING_PRESETS, ClippingDefense, ClippingSettings
from shadow_defense.defenses.concealing_samples import (
    CONCEALING_SAMPLES_PRESETS,
    ConcealingSamplesDefense,
    ConcealingSamplesSettings,
)
from shadow_defense.defenses.dp_sgd import DP_SGD_PRESETS, DPSGDDefense, DPSGDSettings
from shadow_defense.defenses.grad_defense import GRAD_DEFENSE_PRESETS, GradDefense, GradDefenseSettings
from shadow_defense.defenses.kind import Kind, Resources, presets_of
from shadow_defense.defenses.local_dp import LOCAL_DP_PRESETS, LocalDPDefense, LocalDPSettings
from shadow_defense.defenses.mixing import MIXING_PRESETS, MixingDefense, MixingSettings
from shadow_defense.defenses.noise import NOISE_PRESETS, NoiseDefense, NoiseSettings
from shadow_defense.defenses.optimal_noise import OPTIMAL_NOISE_PRESETS, OptimalNoiseDefense, OptimalNoiseSettings
from shadow_defense.defenses.outpost import OUTPOST_PRESETS, OutpostDefense, OutpostSettings
from shadow_defense.defenses.precode import PRECODE_PRESETS, PrecodeDefense, PrecodeSettings, adapt_precode
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.defenses.soteria import SOTERIA_PRESETS, SoteriaDefense, SoteriaSettings
from shadow_defense.defenses.sparsification import (
    SPARSIFICATION_PRESETS,
    SparsificationDefense,
    SparsificationSettings,
)
from shadow_defense.errors import ConfigError, DefenseError
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import SHADOW_PRESETS, ShadowSettings, shadow_preset
from shadow_defense.validation import validated


class NoSettings(BaseModel):
    """A defense without settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


def _ats(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, ATSSettings)
    return ATSDefense(settings, resources.normalisation, resources.seed_of("ats"))


def _mixing(settings: BaseModel, resources: Resources, *, flip_signs: bool) -> Defense:
    assert isinstance(settings, MixingSettings)
    return MixingDefense(
        settings,
        flip_signs=flip_signs,
        public=resources.public,
        normalisation=resources.normalisation,
        classes=resources.classes,
        seed=resources.seed_of("instahide" if flip_signs else "mixup"),
    )


def _precode(settings: BaseModel, resources: Resources) -> Defense:
    return PrecodeDefense()


def _dcs(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, ConcealingSamplesSettings)
    return ConcealingSamplesDefense(
        settings, resources.public, resources.normalisation, resources.classes, resources.seed_of("dcs")
    )


def _grad_defense(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, GradDefenseSettings)
    return GradDefense(
        settings, resources.public, resources.normalisation, resources.classes, resources.seed_of("grad-defense")
    )


def _optimal_noise(settings: BaseModel, resources: Resources) -> Defense:
    assert isinstance(settings, OptimalNoiseSettings)
    return OptimalNoiseDefense(settings, resources.seed_of("optimal-noise"))


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
    "ats": Kind(
        "images transformed at random by a searched policy (Gao et al. 2021)",
        tuple(ATS_PRESETS),
        presets_of("ats", ATSSettings, ATS_PRESETS),
        _ats,
        acts_on=("batch",),
    ),
    "mixup": Kind(
        "weighted sums of images, with labels mixed alike (MixUp)",
        tuple(MIXING_PRESETS),
        presets_of("mixup", MixingSettings, MIXING_PRESETS),
        partial(_mixing, flip_signs=False),
        acts_on=("batch",),
    ),
    "instahide": Kind(
        "weighted sums of images with random signs, labels mixed alike (Huang et al. 2020)",
        tuple(MIXING_PRESETS),
        presets_of("instahide", MixingSettings, MIXING_PRESETS),
        partial(_mixing, flip_signs=True),
        acts_on=("batch",),
    ),
    "precode": Kind(
        "a variational bottleneck in the task model (Scheliga et al. 2022)",
        tuple(PRECODE_PRESETS),
        presets_of("precode", PrecodeSettings, PRECODE_PRESETS),
        _precode,
        adapt_model=adapt_precode,
    ),
    "dcs": Kind(
        "the gradient mixed with that of public images which pull on the model alike (Wu et al. 2024)",
        tuple(CONCEALING_SAMPLES_PRESETS),
        presets_of("dcs", ConcealingSamplesSettings, CONCEALING_SAMPLES_PRESETS),
        _dcs,
        acts_on=("gradients",),
    ),
    "grad-defense": Kind(
        "noise on some slices of the parameters that are equally sensitive to the image (Wang et al. 2022)",
        tuple(GRAD_DEFENSE_PRESETS),
        presets_of("grad-defense", GradDefenseSettings, GRAD_DEFENSE_PRESETS),
        _grad_defense,
        acts_on=("gradients", "update"),
    ),
    "optimal-noise": Kind(
        "most noise, or zeros, where a gradient says much about the image for its size (arXiv 2411.03746)",
        tuple(OPTIMAL_NOISE_PRESETS),
        presets_of("optimal-noise", OptimalNoiseSettings, OPTIMAL_NOISE_PRESETS),
        _optimal_noise,
        acts_on=("gradients",),
    ),
}
