"""The worst case of images that are protected once: the attacker is handed them, and runs removers on them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.suite import Knowledge, removers_for
from shadow_defense.data.dataset import ImageSet
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.combined import CombinedDefense
from shadow_defense.defenses.protect_once import ProtectOnce
from shadow_defense.placement import CPU
from shadow_defense.protection.decoy import Decoy
from shadow_defense.protection.written import Written


def protecting_once(defense: Defense) -> ProtectOnce | None:
    """The defense, or the part of it, that gives the same protected images in every round."""
    parts = defense.parts.values() if isinstance(defense, CombinedDefense) else (defense,)
    return next((part for part in parts if isinstance(part, ProtectOnce)), None)


def removals(defense: ProtectOnce, images: ImageSet, device: torch.device = CPU) -> dict[str, Float[Tensor, "n c h w"]]:
    """What is made of a client's protected images, by remover: the images themselves, and those that need no training.

    No update tells more of an image than these do (docs/protect.md).

    Args:
        images: the client's own, which the defense has prepared; looked at for ids and labels alone.
        device: where a generator of decoys computes.
    """
    protected = defense.protected(images.sample_ids).float() / 255
    public, texture = defense.resources.public, defense.texture()
    knowledge = Knowledge(public.unit_images(), public.labels, defense.resources.classes, device=device)
    seen = texture if isinstance(texture, Decoy) else Written(texture, knowledge.images)
    removers = removers_for(seen, knowledge, seed=0, steps=0)
    return {
        "none": protected,
        **{name: remover.remove(protected, images.labels).estimates for name, remover in removers.items()},
    }
