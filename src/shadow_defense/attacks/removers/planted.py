"""Protections that must be broken: a remover that fails on them has a fault, or the attacker too little to go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.choosing import squared_errors
from shadow_defense.attacks.removers.code_inversion import CodeInversion
from shadow_defense.attacks.removers.learned import pairs_of_own_making, train_remover
from shadow_defense.attacks.removers.lmmse import LinearRemover, linear_removal
from shadow_defense.attacks.removers.pool_lookup import PoolLookup
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys, PoolDecoys
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import Whitening
from shadow_defense.seeds import named_generator

WEAK = 0.05
"""Deviation of the weak noise; of x' itself the PSNR is then 26 dB."""

SPARSE_SHARE, SPARSE_STEP = 0.2, 0.3
"""Share of the pixels that are brightened, and by how much: noise of the kind that the paper adds."""

CLOSE = 1e-3
"""Squared error that counts as the image itself: 30 dB."""

PLAIN = 50
"""Images on which codes are inverted."""


def drawn(seed: int, purpose: str, count: int) -> list[torch.Generator]:
    """The attacker's own draws."""
    return [named_generator(seed, "planted", purpose, place) for place in range(count)]


def breaks_weak_noise(whitening: Whitening, images: Float[Tensor, "n c h w"], seed: int) -> bool:
    """Whether LMMSE leaves less than white noise of :data:`WEAK` itself."""
    texture = White(whitening, WEAK)
    protected = texture.protect(images, drawn(seed, "weak", len(images)))
    estimates = LinearRemover(whitening, texture.view()).removal.images([protected])
    return float(squared_errors(estimates, images).mean()) < 0.9 * WEAK**2


def breaks_known_draws(texture: Texture, images: Float[Tensor, "n c h w"], seed: int) -> bool:
    """Whether who knows the draws sees more than who does not, and as much as the kept part tells.

    The draws are made again from their seed, taken off, and LMMSE is run on what is left.
    """
    protected = texture.protect(images, drawn(seed, "known", len(images)))
    left = protected - texture.added(drawn(seed, "known", len(images)))
    known = linear_removal(texture.whitening, [texture.known_view()])
    unknown = LinearRemover(texture.whitening, texture.view()).removal
    told, blind, all_that_is_kept = (
        float(squared_errors(estimates, images).mean())
        for estimates in (known.images([left]), unknown.images([protected]), known.images([texture.kept(images)]))
    )
    return told < blind and told < 1.1 * all_that_is_kept + CLOSE / 10


def breaks_sparse_noise(
    whitening: Whitening,
    public: Float[Tensor, "n c h w"],
    images: Float[Tensor, "m c h w"],
    seed: int,
    steps: int,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> bool:
    """Whether a network so trained halves the error that LMMSE leaves of pixels brightened here and there."""

    def protect(clean: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        marks = [torch.rand(clean.shape[2:], generator=each) < SPARSE_SHARE for each in draws]
        return clean + SPARSE_STEP * torch.stack(marks)[:, None]

    # As a linear remover sees it: noise of this deviation. Its mean is an offset that it is not told.
    deviation = SPARSE_STEP * (SPARSE_SHARE * (1 - SPARSE_SHARE)) ** 0.5
    linear = LinearRemover(whitening, White(whitening, deviation).view())
    nothing = torch.zeros(len(public)).long()
    pairs = pairs_of_own_making(protect, public, nothing)
    remover = train_remover(linear, pairs, 1, seed=seed, steps=steps, progress=progress, device=device)
    protected = protect(images, drawn(seed, "sparse", len(images)))
    before, after = (
        float(squared_errors(each.remove(protected, nothing[: len(images)]).estimates, images).mean())
        for each in (linear, remover)
    )
    return after < 0.5 * before


def breaks_pool(
    whitening: Whitening, decoys: PoolDecoys, share: float, images: Float[Tensor, "n c h w"], seed: int
) -> bool:
    """Whether decoys of the pool without a floor are found in nineteen images of twenty."""
    texture = Decoy(whitening, decoys, share, 0.0)
    protected = texture.protect(images, drawn(seed, "pool", len(images)))
    found = PoolLookup(texture).probabilities(protected).argmax(dim=1)
    return float((found == decoys.chosen(drawn(seed, "pool", len(images)))).float().mean()) >= 0.95


def breaks_known_code(
    whitening: Whitening,
    decoys: GeneratedDecoys,
    share: float,
    images: Float[Tensor, "n c h w"],
    seed: int,
    device: torch.device = CPU,
) -> bool:
    """Whether the inversion that starts at the code itself stays there, and gives the image away."""
    texture, images = Decoy(whitening, decoys, share, 0.0), images[:PLAIN]
    protected = texture.protect(images, drawn(seed, "code", len(images)))
    known = decoys.codes(drawn(seed, "code", len(images)))
    remover = CodeInversion(texture, seed=seed, known=known, device=device)
    estimates = remover.remove(protected, torch.zeros(len(images)).long()).estimates
    return float(squared_errors(estimates, images).mean()) < CLOSE
