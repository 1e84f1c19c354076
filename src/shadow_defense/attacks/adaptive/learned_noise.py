"""A remover that an attacker learns for the noise of a defense that it knows, to run over what it rebuilt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.adaptive.image_noise import round_of
from shadow_defense.attacks.contrast import contrast
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.removers.copied import copied, protected_by
from shadow_defense.attacks.removers.learned import LearnedRemover, pairs_found, train_remover
from shadow_defense.attacks.removers.unknown import AsGiven
from shadow_defense.defenses.kind import Resources
from shadow_defense.seeds import seed_for

STEPS = 300
"""Of the remover's training."""

KEPT = 4
"""Removers that are kept in memory: all clients of a round and a defense face the same noise."""


def can_learn(observation: Observation) -> bool:
    """Whether the client's defense lies on images alone, and this attacker can have a copy of it."""
    settings = observation.defense
    has_generator = observation.grants("generator") or not settings.kind().needs_generator
    return settings.on_images_alone and has_generator


class Learnt(NamedTuple):
    """The remover, and the contrast of normalised images as the defense leaves them, which a client trains on."""

    remover: LearnedRemover
    contrast: float


def learned_remover(seen: Sequence[Observation]) -> Learnt:
    """``argmin_U sum |U(mean_r x'_r) - x|^2`` over public images x, protected by the attacker's copy in each round r.

    What reconstructions of several rounds have in common is their mean, so the remover learns from means as well
    (docs/attacks.md). As new as the client's defense is at the first of the rounds: what it would remember of others is
    not simulated. The same for every client of these rounds, and trained once for all.

    Args:
        seen: the rounds that are averaged; the defense, public images and, where the defense needs one, the
            generator have to be granted.
    """
    return _learnt(_Lesson(_digest(seen), seen))


@dataclass(frozen=True)
class _Lesson:
    """Two are equal where the same is to be learnt."""

    digest: str
    seen: Sequence[Observation] = field(compare=False)


@lru_cache(maxsize=KEPT)
def _learnt(lesson: _Lesson) -> Learnt:
    last = lesson.seen[-1]
    public = copied(last.auxiliary)
    protected = torch.stack([_protected(each, lesson.digest) for each in lesson.seen])
    pairs = pairs_found(protected.mean(0), public.unit_images(), public.labels)
    seed = seed_for(0, "learned noise", lesson.digest)
    remover = train_remover(AsGiven(), pairs, last.classes, seed=seed, steps=STEPS, device=last.device)
    return Learnt(remover, contrast(last.normalisation.apply(protected.flatten(0, 1))).mean().item())


def _protected(observation: Observation, digest: str) -> Float[Tensor, "n c h w"]:
    """Public images as an attack would rebuild them at best: in [0, 1]."""
    settings, normalisation = observation.defense, observation.normalisation
    round = observation.update.round
    generator = observation.generator if settings.kind().needs_generator else None
    draws = seed_for(0, "a copy of the defense", digest, round)
    copy = settings.build(
        Resources(generator, normalisation, observation.auxiliary, observation.classes, "simulated", draws)
    )
    context = round_of(observation, observation.rounds or round + 1)
    return protected_by(copy, copied(observation.auxiliary), context, normalisation).clamp(0, 1)


def _digest(seen: Sequence[Observation]) -> str:
    """Of all that decides what is learnt."""
    found = hashlib.sha256()
    for each in seen:
        settings, public = each.defense, each.auxiliary
        told = [settings.model_dump_json(), each.update.round, each.rounds, each.normalisation]
        found.update(repr(told).encode())
        tensors = [public.images, public.labels, *(each.global_state[name] for name in sorted(each.global_state))]
        if settings.kind().needs_generator:
            tensors += each.generator.state_dict().values()
        for tensor in tensors:
            found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
