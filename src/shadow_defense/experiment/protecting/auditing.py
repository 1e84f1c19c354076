"""The audit of a protected data set: the attacker is handed x' and everything but the secret."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.both_looks import EarlierLook
from shadow_defense.attacks.removers.lmmse import linear_removal
from shadow_defense.attacks.removers.suite import Knowledge, planted_breaks, removers_for
from shadow_defense.attacks.removers.verifier import Verifier, finds_patients_in_weak_noise, train_verifier
from shadow_defense.attacks.removers.worst_case import attack, in_hindsight, linkage, scores
from shadow_defense.config import MetricSettings
from shadow_defense.data.dataset import ImageSet
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.metrics.confidence import Estimate, mean_interval, psnr_of_mean_error
from shadow_defense.metrics.lpips import load_lpips
from shadow_defense.metrics.psnr import decibels
from shadow_defense.progress import Progress
from shadow_defense.protection.frozen import FrozenProtection
from shadow_defense.protection.texture import Texture
from shadow_defense.report.records.certificate import Audited
from shadow_defense.seeds import named_generator

Measures = dict[str, Estimate]

VERIFIER_STEPS = 600
"""At most: with 150 patients of Kermany's X-rays at 32 px are not always found in weak noise, with 300 they are."""

WITHOUT_PATIENTS = (
    "The public images do not say whose they are, so that no verifier of patients could be trained: other images of "
    "the same patient were looked for by likelihood and by distance alone."
)
NO_VERIFIER = (
    "A verifier trained on the public images does not find their patients even in weak noise: other images of the "
    "same patient were looked for by likelihood and by distance alone. More public images of known patients may find "
    "more."
)


def audit_protection(
    frozen: FrozenProtection,
    knowledge: Knowledge,
    private: ImageSet,
    settings: ProtectSettings,
    progress: Progress,
    before: FrozenProtection | None = None,
) -> Audited:
    """Attack up to ``settings.audited`` of the protected images as they were drawn, neither clipped nor rounded.

    Args:
        before: an earlier protection of them, of which the attacker has seen as much.
    """
    places = audited_places(len(private), settings)
    images, texture = private.images[places], frozen.texture
    earlier = None if before is None else EarlierLook(before.texture, before.protected(images))
    protected = frozen.protected(images)
    return audit_images(texture, texture, protected, places, knowledge, private, settings, progress, earlier)


def audited_places(count: int, settings: ProtectSettings) -> Int64[Tensor, " n"]:
    """Which images are attacked, in ascending order."""
    draws = named_generator(settings.seed, "protect", "audited")
    return torch.randperm(count, generator=draws)[: settings.audited].sort().values


def audit_images(
    drawn: Texture,
    seen: Texture,
    protected: Float[Tensor, "n c h w"],
    places: Int64[Tensor, " n"],
    knowledge: Knowledge,
    private: ImageSet,
    settings: ProtectSettings,
    progress: Progress,
    earlier: EarlierLook | None = None,
) -> Audited:
    """Attack protected images, and find them among all that were protected.

    Args:
        drawn: the texture, on which removers must break what they must break.
        seen: the same as the attacker sees its images.
        places: of the protected images' clean ones in ``private``.
    """
    truths = private.images[places].float() / 255
    # Classes that the attacker's images do not have are told it as the last of those.
    labels = private.labels[places].clamp_max(knowledge.classes - 1)
    seed, steps = settings.seed, settings.remover_steps
    removers = removers_for(seen, knowledge, seed=seed, steps=steps, progress=progress)
    planted = planted_breaks(drawn, knowledge, seed=seed, steps=steps, progress=progress)
    found = attack(seen, removers, knowledge, protected, labels, seed=seed, earlier=earlier)
    mean = drawn.whitening.mean.unflatten(0, drawn.whitening.shape)
    by_remover = {name: scores(each.estimates, truths, mean) for name, each in found.removals.items()}
    name = MetricSettings().lpips
    perceived = None if name is None else load_lpips(name)
    verifier, notes = _verifier(seen, knowledge, private, settings, progress)
    linked = linkage(seen, protected, found.estimates, private.unit_images(), places, private.groups, verifier, earlier)
    withheld = not all(planted.values())
    return Audited(
        planted_breaks=planted,
        removers={name: measured(each) for name, each in by_remover.items()},
        worst={} if withheld else measured(scores(found.estimates, truths, mean, perceived)),
        hindsight={} if withheld else measured(in_hindsight(list(by_remover.values()))),
        mean_image=measured(scores(mean.expand_as(truths), truths, mean, perceived)),
        linkage={} if withheld else measured(linked),
        floor=_floor(seen, *(() if earlier is None else (earlier.texture,))),
        notes=notes,
    )


def _verifier(
    texture: Texture, knowledge: Knowledge, private: ImageSet, settings: ProtectSettings, progress: Progress
) -> tuple[Verifier | None, tuple[str, ...]]:
    """What finds patients again, and why there is none where patients are known."""
    if private.groups is None:
        return None, ()
    if knowledge.groups is None:
        return None, (WITHOUT_PATIENTS,)
    seed, steps = settings.seed, min(settings.remover_steps, VERIFIER_STEPS)
    if not finds_patients_in_weak_noise(texture, knowledge, seed=seed, steps=steps):
        return None, (NO_VERIFIER,)
    return train_verifier(texture, knowledge, seed=seed, steps=steps, progress=progress), ()


def measured(each: Mapping[str, Tensor]) -> Measures:
    """Means over images with their intervals, of what is finite; of PSNRs also that of the mean error."""
    finite = {name: [value for value in values.tolist() if math.isfinite(value)] for name, values in each.items()}
    found = {name: mean_interval(values) for name, values in finite.items() if values}
    return found | ({"psnr_of_mean_error": psnr_of_mean_error(finite["psnr"])} if "psnr" in found else {})


def _floor(*looks: Texture) -> Measures:
    """Above which no linear remover comes, if the public images' mean and covariance are the private ones'.

    In the one measure for which it holds: a mean of PSNRs may lie above that of the mean error.
    """
    error = linear_removal(looks[0].whitening, [each.view() for each in looks]).mean_squared_error()
    return {"psnr_of_mean_error": Estimate(float(decibels(torch.tensor(error))), None, 1)}
