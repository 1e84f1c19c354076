"""The most that can be made of protected images: every remover on each, and the one to believe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.both_looks import NAME as BOTH
from shadow_defense.attacks.removers.both_looks import EarlierLook
from shadow_defense.attacks.removers.choosing import chosen_estimates, learn_rule
from shadow_defense.attacks.removers.linking import likelihoods
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.remover import Removal, Remover
from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.attacks.removers.verifier import Verifier
from shadow_defense.metrics.leakage import relative_data_leakage
from shadow_defense.metrics.linkage import hits, patient_ranks_above, ranks_above
from shadow_defense.metrics.lpips import Lpips
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.protection.texture import Texture

Scores = dict[str, Float[Tensor, " _"]]
"""Of each image, by metric: psnr, ssim, rdlv and, where a model is given, lpips."""


@dataclass(frozen=True)
class WorstCase:
    """What the attacker made of protected images.

    Attributes:
        removals: by remover.
        estimates: of the remover that the attacker believes for each image, without seeing the truth.
    """

    removals: Mapping[str, Removal]
    estimates: Float[Tensor, "n c h w"]


def attack(
    texture: Texture,
    removers: Mapping[str, Remover],
    knowledge: Knowledge,
    protected: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    seed: int,
    earlier: EarlierLook | None = None,
) -> WorstCase:
    """Run every remover, and choose by what each was worth on public images that were held back."""
    _, held = knowledge.parts()
    own = texture.protect(held.images, drawn(seed, "rule", len(held.images)))
    tried = {name: each.remove(own, held.labels) for name, each in removers.items()}
    removals = {name: each.remove(protected, labels) for name, each in removers.items()}
    if earlier is not None:
        before = earlier.texture.protect(held.images, drawn(seed, "earlier", len(held.images)))
        tried[BOTH] = earlier.removal(texture, [own, before])
        removals[BOTH] = earlier.removal(texture, [protected, earlier.protected])
    rule = learn_rule(tried, held.images)
    return WorstCase(removals, chosen_estimates(removals, rule.choose(removals)))


def scores(
    estimates: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "n c h w"],
    mean: Float[Tensor, "c h w"],
    lpips: Lpips | None = None,
) -> Scores:
    """Of each image; RDLV against the mean of public images, NaN where that has an SSIM of 0 or less."""
    similar = ssim(estimates, truths)
    prior = ssim(mean.expand_as(truths), truths)
    found = {"psnr": psnr(estimates, truths), "ssim": similar, "rdlv": relative_data_leakage(similar, prior)}
    return found if lpips is None else {**found, "lpips": lpips.distance(estimates, truths)}


def in_hindsight(each: Sequence[Scores]) -> Scores:
    """The closest of several estimates of each image, by each metric apart."""
    return {
        name: torch.stack([found[name] for found in each]).amin(dim=0)
        if name == "lpips"
        else torch.stack([found[name] for found in each]).amax(dim=0)
        for name in each[0]
    }


def linkage(
    texture: Texture,
    protected: Float[Tensor, "n c h w"],
    estimates: Float[Tensor, "n c h w"],
    gallery: Float[Tensor, "m c h w"],
    own: Int64[Tensor, " n"],
    groups: Sequence[str] | None,
    verifier: Verifier | None = None,
    earlier: EarlierLook | None = None,
) -> Scores:
    """Finding each image in the gallery of clean ones: by likelihood, also of both looks, by distance from what was
    made of it, or by a verifier of patients.

    The one that finds more counts, of images and of patients apart.

    Args:
        own: place of each image in the gallery.
        groups: the patient of each gallery image, where known.

    Returns:
        ``rank1`` and ``auc`` of the same image; ``patient_auc`` of others of the same patient, where there are such.
    """
    ways = [likelihoods(texture.whitening, [(texture, protected)], gallery), *distances([estimates], gallery)]
    if earlier is not None:
        ways.append(earlier.likelihoods(texture, protected, gallery))
    if verifier is not None:
        ways.append(verifier.similarity(protected, gallery))
    return found_again(ways, own, groups)


def distances(
    made: Iterable[Float[Tensor, "n c h w"]], gallery: Float[Tensor, "m c h w"]
) -> list[Float[Tensor, "n m"]]:
    """Of each estimate of the images how close they come to each image of the gallery: minus the distance."""
    return [-torch.cdist(each.flatten(1), gallery.flatten(1)) for each in made]


def found_again(ways: Sequence[Float[Tensor, "n m"]], own: Int64[Tensor, " n"], groups: Sequence[str] | None) -> Scores:
    """As :func:`linkage`, from similarities of each image to each of the gallery."""
    similarity = max(ways, key=lambda each: float(hits(each, own).mean()))
    found = {"rank1": hits(similarity, own), "auc": ranks_above(similarity, own)}
    if groups is None:
        return found
    patients = max((patient_ranks_above(each, own, groups) for each in ways), key=lambda each: float(each.sum()))
    return {**found, "patient_auc": patients} if len(patients) else found
