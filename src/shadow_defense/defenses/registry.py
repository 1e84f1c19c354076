"""The registry of defenses: one entry each, with how a client gets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from shadow_defense.defenses.ats import ATS_PRESETS, ATSDefense, ATSSettings
from shadow_defense.defenses.base import Defense, Place
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
from shadow_defense.errors import DefenseError
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import SHADOW_PRESETS, ShadowSettings

Settings = TypeVar("Settings", bound=BaseModel)


class NoSettings(BaseModel):
    """A defense without settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _kind(
    name: str,
    summary: str,
    model: type[Settings],
    presets: Mapping[str, Mapping[str, Any]],
    build: Callable[[Settings, Resources], Defense],
    *,
    acts_on: tuple[Place, ...] = (),
    needs_generator: bool = False,
    adapt_model: Callable[[BaseModel, nn.Module, int], nn.Module] | None = None,
) -> Kind:
    """An entry whose builder is given settings of ``model``, made from one of ``presets``."""

    def build_checked(settings: BaseModel, resources: Resources) -> Defense:
        assert isinstance(settings, model)
        return build(settings, resources)

    return Kind(
        summary,
        tuple(presets),
        presets_of(name, model, presets),
        build_checked,
        acts_on=acts_on,
        needs_generator=needs_generator,
        adapt_model=adapt_model,
    )


def _shadow(settings: ShadowSettings, resources: Resources) -> ShadowDefense:
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


def _mixing(settings: MixingSettings, resources: Resources, name: str, *, flip_signs: bool) -> MixingDefense:
    return MixingDefense(
        settings,
        flip_signs=flip_signs,
        public=resources.public,
        normalisation=resources.normalisation,
        classes=resources.classes,
        seed=resources.seed_of(name),
    )


DEFENSES: dict[str, Kind] = {
    "none": _kind(
        "none",
        "plain FedAvg, nothing protected",
        NoSettings,
        {"paper": {}},
        lambda settings, resources: Defense(),
    ),
    "shadow": _kind(
        "shadow",
        "noise where a shadow generator can rebuild the image (Jiang et al. 2025)",
        ShadowSettings,
        SHADOW_PRESETS,
        _shadow,
        acts_on=tuple(sorted(ShadowDefense.acts_on)),
        needs_generator=True,
    ),
    "noise": _kind(
        "noise",
        "Gaussian or Laplace noise on gradients or update; no guarantee of privacy",
        NoiseSettings,
        NOISE_PRESETS,
        lambda settings, resources: NoiseDefense(settings, resources.seed_of("noise")),
        acts_on=("gradients", "update"),
    ),
    "local-dp": _kind(
        "local-dp",
        "update clipped, then Gaussian noise: local differential privacy, epsilon reported",
        LocalDPSettings,
        LOCAL_DP_PRESETS,
        lambda settings, resources: LocalDPDefense(settings, resources.seed_of("local-dp")),
        acts_on=("update",),
    ),
    "dp-sgd": _kind(
        "dp-sgd",
        "each sample's gradient clipped, then Gaussian noise: DP-SGD (Abadi et al. 2016), epsilon reported",
        DPSGDSettings,
        DP_SGD_PRESETS,
        lambda settings, resources: DPSGDDefense(settings, resources.seed_of("dp-sgd")),
        acts_on=("gradients",),
    ),
    "gradient-clipping": _kind(
        "gradient-clipping",
        "gradients or update scaled down to a largest norm (GC)",
        ClippingSettings,
        CLIPPING_PRESETS,
        lambda settings, resources: ClippingDefense(settings),
        acts_on=("gradients", "update"),
    ),
    "gradient-sparsification": _kind(
        "gradient-sparsification",
        "smallest entries of gradients or update sent as zero (GS)",
        SparsificationSettings,
        SPARSIFICATION_PRESETS,
        lambda settings, resources: SparsificationDefense(settings),
        acts_on=("gradients", "update"),
    ),
    "soteria": _kind(
        "soteria",
        "columns of a fully connected layer that say most of the image zeroed (Sun et al. 2021)",
        SoteriaSettings,
        SOTERIA_PRESETS,
        lambda settings, resources: SoteriaDefense(settings),
        acts_on=("gradients", "update"),
    ),
    "outpost": _kind(
        "outpost",
        "some steps pruned, with noise by Fisher information and the weights' variance (Wang et al. 2023)",
        OutpostSettings,
        OUTPOST_PRESETS,
        lambda settings, resources: OutpostDefense(settings, resources.seed_of("outpost")),
        acts_on=("gradients",),
    ),
    "censor": _kind(
        "censor",
        "the best of some random directions orthogonal to the gradient (Zhang et al. 2025)",
        CensorSettings,
        CENSOR_PRESETS,
        lambda settings, resources: CensorDefense(settings, resources.seed_of("censor")),
        acts_on=("gradients", "update"),
    ),
    "ats": _kind(
        "ats",
        "images transformed at random by a searched policy (Gao et al. 2021)",
        ATSSettings,
        ATS_PRESETS,
        lambda settings, resources: ATSDefense(settings, resources.normalisation, resources.seed_of("ats")),
        acts_on=("batch",),
    ),
    "mixup": _kind(
        "mixup",
        "weighted sums of images, with labels mixed alike (MixUp)",
        MixingSettings,
        MIXING_PRESETS,
        lambda settings, resources: _mixing(settings, resources, "mixup", flip_signs=False),
        acts_on=("batch",),
    ),
    "instahide": _kind(
        "instahide",
        "weighted sums of images with random signs, labels mixed alike (Huang et al. 2020)",
        MixingSettings,
        MIXING_PRESETS,
        lambda settings, resources: _mixing(settings, resources, "instahide", flip_signs=True),
        acts_on=("batch",),
    ),
    "precode": _kind(
        "precode",
        "a variational bottleneck in the task model (Scheliga et al. 2022)",
        PrecodeSettings,
        PRECODE_PRESETS,
        lambda settings, resources: PrecodeDefense(),
        adapt_model=adapt_precode,
    ),
    "dcs": _kind(
        "dcs",
        "the gradient mixed with that of public images which pull on the model alike (Wu et al. 2024)",
        ConcealingSamplesSettings,
        CONCEALING_SAMPLES_PRESETS,
        lambda settings, resources: ConcealingSamplesDefense(
            settings, resources.public, resources.normalisation, resources.classes, resources.seed_of("dcs")
        ),
        acts_on=("gradients",),
    ),
    "grad-defense": _kind(
        "grad-defense",
        "noise on some slices of the parameters that are equally sensitive to the image (Wang et al. 2022)",
        GradDefenseSettings,
        GRAD_DEFENSE_PRESETS,
        lambda settings, resources: GradDefense(
            settings, resources.public, resources.normalisation, resources.classes, resources.seed_of("grad-defense")
        ),
        acts_on=("gradients", "update"),
    ),
    "optimal-noise": _kind(
        "optimal-noise",
        "most noise, or zeros, where a gradient says much about the image for its size (arXiv 2411.03746)",
        OptimalNoiseSettings,
        OPTIMAL_NOISE_PRESETS,
        lambda settings, resources: OptimalNoiseDefense(settings, resources.seed_of("optimal-noise")),
        acts_on=("gradients",),
    ),
}
