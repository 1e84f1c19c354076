"""How the matching term is fitted to each defense, by the defense's settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor

from shadow_defense.attacks.adaptive.distances import absolute_distance, orthogonality_distance
from shadow_defense.attacks.adaptive.matching import Mask, MatchingAdaptation
from shadow_defense.attacks.adaptive.scene import Scene
from shadow_defense.attacks.adaptive.transforms import bounded, weighted
from shadow_defense.attacks.objectives import MATCHINGS, layer_distance, squared_distance
from shadow_defense.defenses.censor import CensorSettings
from shadow_defense.defenses.clipping import NORM_SLACK, ClippingSettings
from shadow_defense.defenses.dp_sgd import DPSGDSettings
from shadow_defense.defenses.local_dp import LocalDPSettings
from shadow_defense.defenses.noise import NoiseSettings
from shadow_defense.defenses.optimal_noise import OptimalNoiseSettings
from shadow_defense.defenses.outpost import OutpostSettings, parameter_risk
from shadow_defense.defenses.soteria import SoteriaSettings, defended_layer
from shadow_defense.defenses.sparsification import SparsificationSettings

LEAST_DEVIATION = 0.1
"""Of the largest: a tensor without noise weighs ten times as much as the noisiest, not infinitely more."""

WEIGHT_OF_ZEROS = 0.3
"""Of entries that sparsification left out, under a cosine."""

SIZES_UNKNOWN = "its size is not known to this attacker, who keeps the attack's own matching term"


@singledispatch
def adaptation(settings: object, scene: Scene) -> MatchingAdaptation | None:
    """How matching is fitted to a defense with these settings; None where nothing is known of them.

    A defense of another package registers its own: ``@adaptation.register(ItsSettings)``.
    """
    return None


@adaptation.register(SparsificationSettings)
def sparsification(settings: SparsificationSettings, scene: Scene) -> MatchingAdaptation:
    """Match where the observed entry is not zero (docs/attacks.md).

    Exact at the truth for distances. A cosine keeps what the zeros tell, that these entries are small, at three tenths
    of their weight. PSNR of four chest X-rays (PneumoniaMNIST, 32 px, ConvNet, one step, 300 iterations of Inverting
    Gradients) at 80, 95 and 99 %: 19.6, 16.8 and 15.2 dB by the plain cosine, 20.2, 18.8 and 15.6 on the
    support alone, 21.5, 19.9 and 17.9 so (2026-11-23).
    """
    zeros = scene.share_of_zeros()
    if not zeros:
        return _nothing("sparsified entries are no zeros any more: no support to match on")
    notes = [
        f"{zeros:.1%} of the entries are zero: left out of distances, at {WEIGHT_OF_ZEROS} of their weight in a cosine"
    ]
    if settings.error_feedback:
        notes.append("what error feedback brings from earlier steps is not simulated")
    return _masked(scene, scene.moved, *notes, under_cosine=WEIGHT_OF_ZEROS)


@adaptation.register(ClippingSettings)
def clipping(settings: ClippingSettings, scene: Scene) -> MatchingAdaptation:
    """Clip the simulated update as the client did (docs/defenses.md).

    By the known C where it can be told in the update's units, and by what was observed, ``S := ||u*||``, after several
    steps or where not all that was clipped was sent.
    """
    if scene.unit is not None and scene.whole:
        bounds = [scene.unit * settings.clip] * len(scene.names)
        transform = bounded(bounds, settings.scope, scene.unit * NORM_SLACK)
        note = f"simulated updates clipped to {bounds[0]:.3g}, as the client's"
    else:
        norms = torch.stack([torch.linalg.vector_norm(tensor) for tensor in scene.observed])
        norm = float(torch.linalg.vector_norm(norms))
        transform = bounded([norm] * len(norms) if settings.scope == "global" else norms.tolist(), settings.scope, 0.0)
        note = f"simulated updates clipped to the observed norm of {norm:.3g}: the bound of each step is not seen"
    blind = ("a cosine does not see a global bound",) if settings.scope == "global" else ()
    return MatchingAdaptation((transform,), notes=(note, *blind))


@adaptation.register(NoiseSettings)
def noise(settings: NoiseSettings, scene: Scene) -> MatchingAdaptation:
    """The noise's likelihood: squares for Gaussian, absolutes for Laplace (docs/defenses.md).

    In place of distances, not of a cosine: that is what squares leave where the update's length is
    free, and it is easier to descend. Inverting Gradients in 300 iterations on a ConvNet and one face of 16 px, noise
    of 0.01 and 0.1: 34.5 and 23.1 dB by the cosine, 22.8 and 18.6 dB by squares, the best of four smoothness priors;
    Laplace noise of 0.01: 32.3 dB by the cosine, 25.0 dB by absolutes.
    """
    if not settings.scale:
        return MatchingAdaptation()
    if settings.distribution == "gaussian":
        return _likelihood(scene)
    if not scene.steps:
        return _nothing(f"Laplace noise: {SIZES_UNKNOWN}")
    return MatchingAdaptation(
        distances=dict.fromkeys((layer_distance, squared_distance), absolute_distance),
        notes=("Laplace noise: absolute differences, its likelihood, in place of distances; a cosine is kept",),
    )


@adaptation.register(LocalDPSettings)
def local_dp(settings: LocalDPSettings, scene: Scene) -> MatchingAdaptation:
    """Clip the simulated update to C, then the likelihood of Gaussian noise (docs/defenses.md)."""
    if scene.unit is None:
        return _likelihood(scene)
    clip = MatchingAdaptation(
        (bounded([settings.clip], "global"),), notes=(f"simulated updates clipped to {settings.clip:.3g}",)
    )
    return clip.then(_likelihood(scene))


@adaptation.register(DPSGDSettings)
def dp_sgd(settings: DPSGDSettings, scene: Scene) -> MatchingAdaptation:
    """As :func:`local_dp`, on the gradient of one step; exact for one image (docs/defenses.md)."""
    if scene.unit is None:
        return _likelihood(scene)
    bound = scene.unit * settings.clip
    notes = [f"simulated updates clipped to {bound:.3g}"]
    if scene.observation.update.samples > 1:
        notes.append("the batch's mean gradient is clipped, where the client clips each image's")
    clip = MatchingAdaptation((bounded([bound], "global", scene.unit * NORM_SLACK),), notes=tuple(notes))
    return clip.then(_likelihood(scene))


@adaptation.register(SoteriaSettings)
def soteria(settings: SoteriaSettings, scene: Scene) -> MatchingAdaptation:
    """Leave out the defended weight's columns that are all zero (docs/defenses.md)."""
    name = f"{defended_layer(scene.observation.model, settings.layer)}.weight"
    if name not in scene.names:
        return _nothing(f"'{name}', which Soteria prunes, is not sent")
    index = scene.names.index(name)
    kept = scene.moved[index].any(dim=0)
    masks = [torch.ones_like(mask) for mask in scene.moved]
    masks[index] = kept.expand_as(masks[index])
    pruned = int((~kept).sum())
    if not pruned:
        return _nothing(f"no column of '{name}' is zero: nothing to leave out")
    return _masked(scene, masks, f"{pruned} of {len(kept)} columns of '{name}' are zero and left out")


@adaptation.register(OutpostSettings)
def outpost(settings: OutpostSettings, scene: Scene) -> MatchingAdaptation:
    """Match on the support, each tensor by ``1 / (lambda min(Var(theta), 1))`` (docs/defenses.md).

    Of one step the density tells whether it was perturbed: a raw one has few zeros. Weights are relative to that of
    the noisiest tensor and end at ten times it: a tensor of equal parameters has no noise at all.
    """
    zeros = scene.share_of_zeros()
    pruned = settings.prune_percent / 100 * (1 - settings.fisher_percent / 100)
    if scene.steps == 1 and zeros < pruned / 2:
        return _nothing(f"{zeros:.1%} of the entries are zero: this step was not perturbed")
    support = _masked(scene, scene.moved, f"matched on the support alone: {zeros:.1%} of the entries are zero")
    weights = inverse_deviations([settings.noise * parameter_risk(tensor) for tensor in scene.parameters])
    if weights is None:
        return support
    note = "tensors weighed by their noise, which the global model's variances tell"
    return support.then(MatchingAdaptation((weighted(weights),), notes=(note,)))


def inverse_deviations(deviations: Sequence[float]) -> list[float] | None:
    """``max(sigma) / max(sigma_l, max(sigma) / 10)`` for each tensor; None where there is no noise.

    >>> inverse_deviations([0.5, 0.25, 0.0])
    [1.0, 2.0, 10.0]
    """
    largest = max(deviations)
    if not largest:
        return None
    return [largest / max(deviation, LEAST_DEVIATION * largest) for deviation in deviations]


@adaptation.register(CensorSettings)
def censor(settings: CensorSettings, scene: Scene) -> MatchingAdaptation:
    """Orthogonality and norm of each tensor, in place of any distance (docs/defenses.md)."""
    last = settings.protected_rounds
    if not settings.trials or (last is not None and scene.observation.update.round >= last):
        return _nothing("this round was sent as it is: nothing to fit")
    if settings.rule == "released":
        return _nothing("the released rule's projection is not orthogonal: the attack's own matching term is kept")
    if scene.unit is None:
        return _nothing("a sum of several steps is not orthogonal to their sum: the attack's own matching term is kept")
    notes = ["directions orthogonal to what was sent, with its norms, are sought: one equation and one norm a tensor"]
    if settings.fallback == "raw":
        notes.append("a raw gradient, which this client sends at times, would be missed")
    return MatchingAdaptation(distances=dict.fromkeys(MATCHINGS.values(), orthogonality_distance), notes=tuple(notes))


@adaptation.register(OptimalNoiseSettings)
def optimal_noise(settings: OptimalNoiseSettings, scene: Scene) -> MatchingAdaptation:
    """Pruning: match on the support. Noise: its likelihood, as if it were alike everywhere (docs/defenses.md)."""
    if settings.mode == "pruning":
        zeros = scene.share_of_zeros()
        return _masked(scene, scene.moved, f"matched on the support alone: {zeros:.1%} of the entries are zero")
    if not settings.noise:
        return MatchingAdaptation()
    unknown = MatchingAdaptation(notes=("where the noise is largest depends on the images: taken as alike everywhere",))
    return _likelihood(scene).then(unknown)


def _likelihood(scene: Scene) -> MatchingAdaptation:
    if not scene.steps:
        return _nothing(f"Gaussian noise: {SIZES_UNKNOWN}")
    return MatchingAdaptation(
        distances={layer_distance: squared_distance},
        notes=("Gaussian noise: squared differences, its likelihood, in place of distances; a cosine is kept",),
    )


def _masked(scene: Scene, masks: Sequence[Tensor], *notes: str, under_cosine: float = 0.0) -> MatchingAdaptation:
    return MatchingAdaptation(
        (Mask(masks, under_cosine),), support=dict(zip(scene.names, masks, strict=True)), notes=notes
    )


def _nothing(note: str) -> MatchingAdaptation:
    return MatchingAdaptation(notes=(note,))
