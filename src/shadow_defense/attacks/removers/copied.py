"""What an attacker's own copy of a client's defense makes of images that the attacker has."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.placement import device_of
from shadow_defense.progress import Progress

BATCH = 8
"""Images that a copy protects together."""

MOST_COPIED = 600
"""Public images that an attacker protects with its own copy of a defense, to learn from the pairs."""


def copied(public: ImageSet) -> ImageSet:
    """The first :data:`MOST_COPIED` of the attacker's images."""
    return public.subset(range(len(public))[:MOST_COPIED])


def protected_by(
    defense: Defense,
    images: ImageSet,
    context: RoundContext,
    normalisation: Normalisation,
    progress: Progress | None = None,
) -> Float[Tensor, "n c h w"]:
    """What a client with ``defense`` and these images trains on in the round of ``context``; 0 to 1, and beyond.

    Computed where the context's model lies, and given back in the host's memory.
    """
    device, normalised = device_of(context.model), normalisation.apply(images.unit_images())
    defense.prepare(normalised, images.sample_ids, progress)
    defense.begin_round(context)
    batches = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    protected = [
        defense.protect_batch(
            Batch(normalised[at].to(device), images.labels[at].to(device), images.sample_ids[at]), context
        ).images.cpu()
        for at in batches
    ]
    return normalisation.invert(torch.cat(protected))
