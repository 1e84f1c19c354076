"""Which removers go with a texture, each after it has broken what it must break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.code_inversion import CodeInversion
from shadow_defense.attacks.removers.learned import pairs_of_own_making, train_remover
from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.planted import (
    breaks_known_code,
    breaks_known_draws,
    breaks_pool,
    breaks_sparse_noise,
    breaks_weak_noise,
)
from shadow_defense.attacks.removers.pool_lookup import PoolLookup
from shadow_defense.attacks.removers.remover import Remover
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys, PoolDecoys
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.whitening import measure_whitening

HELD_BACK = 4
"""One in so many public images is kept from the learned remover, for the planted breaks and the choice of remover."""


@dataclass(frozen=True)
class Knowledge:
    """What an attacker has beside the texture: public images in [0, 1] and, where known, their labels (else 0).

    ``groups`` are their patients, where known; ``device`` is where it trains its networks.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: int
    groups: tuple[str, ...] | None = None
    device: torch.device = CPU

    def parts(self) -> tuple[Knowledge, Knowledge]:
        """Those to train on, and those held back."""
        place = torch.arange(len(self.images))
        held = place % HELD_BACK == 0
        return self.subset(~held), self.subset(held)

    def subset(self, chosen: Bool[Tensor, " n"]) -> Knowledge:
        """Those images that are chosen."""
        groups = self.groups
        if groups is not None:
            groups = tuple(name for name, keep in zip(groups, chosen.tolist(), strict=True) if keep)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], groups=groups)


def removers_for(
    texture: Texture, knowledge: Knowledge, *, seed: int, steps: int, progress: Progress | None = None
) -> dict[str, Remover]:
    """Every remover that the texture leaves room for, by name.

    Args:
        steps: of the learned remover's training; 0 leaves it out.
    """
    training, _ = knowledge.parts()
    pairs = pairs_of_own_making(texture.protect, training.images, training.labels)
    train = partial(
        train_remover,
        pairs=pairs,
        classes=knowledge.classes,
        seed=seed,
        steps=steps,
        progress=progress,
        device=knowledge.device,
    )
    linear = LinearRemover(texture.whitening, texture.view())
    found: list[Remover] = [linear]
    if steps:
        found.append(train(linear))
    if isinstance(texture, Decoy):
        if isinstance(texture.decoys, PoolDecoys):
            lookup = PoolLookup(texture)
            found.append(lookup)
            if steps:
                found.append(train(lookup, name="pool look-up, then learned"))
        if isinstance(texture.decoys, GeneratedDecoys):
            found.append(CodeInversion(texture, seed=seed, device=knowledge.device))
    return {each.name: each for each in found}


def planted_breaks(
    texture: Texture,
    knowledge: Knowledge,
    *,
    seed: int,
    steps: int,
    progress: Progress | None = None,
) -> dict[str, bool]:
    """By name whether each planted break was broken; where one was not, no verdict of these removers counts.

    All on public images that were held back (Zimmermann et al. 2022, "Increasing confidence in adversarial robustness
    evaluations"): a remover that fails where it must succeed says nothing where it fails.

    Args:
        steps: of the learned remover that is trained on a noise of its own; 0 leaves that break out.
    """
    training, held = knowledge.parts()
    whitening = texture.whitening
    checks: dict[str, Callable[[], bool]] = {
        "weak noise": lambda: breaks_weak_noise(whitening, held.images, seed),
        "draws of a known seed": lambda: breaks_known_draws(texture, held.images, seed),
    }
    if steps:
        checks["sparse noise"] = lambda: breaks_sparse_noise(
            whitening, training.images, held.images, seed, steps, progress, knowledge.device
        )
    if isinstance(texture, Decoy):
        decoys, share = texture.decoys, float(texture.share.max())
        if isinstance(decoys, PoolDecoys):
            checks["pool decoy"] = lambda: breaks_pool(whitening, decoys, share, held.images, seed)
        if isinstance(decoys, GeneratedDecoys):
            checks["decoy of a known code"] = lambda: breaks_known_code(
                whitening, decoys, share, held.images, seed, knowledge.device
            )
    return {name: check() for name, check in checks.items()}


def breaks_unknown_noise(knowledge: Knowledge, *, seed: int, steps: int, progress: Progress | None = None) -> bool:
    """The planted break of a learned remover that knows no texture: whether it breaks sparse noise."""
    training, held = knowledge.parts()
    whitening = measure_whitening(knowledge.images)
    return breaks_sparse_noise(whitening, training.images, held.images, seed, steps, progress, knowledge.device)
