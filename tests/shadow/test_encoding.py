"""Where latent inversion starts."""

from __future__ import annotations

import torch
from tests.shadow.little_guard import Z, generator, guard, images

from shadow_defense.data.dataset import Normalisation
from shadow_defense.generators.interface import as_generator
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.encoding import nearest_codes


def test_each_image_starts_from_the_nearest_code_whatever_else_is_encoded() -> None:
    """Planted: images that two of the codes render are found with those codes, alone and together."""
    plain = as_generator(generator(), Z)
    codes = torch.randn(200, Z, generator=named_generator(7, "latent starts"))
    normalisation = Normalisation((0.5,), (0.5,))
    with torch.no_grad():
        targets = plain(codes[[3, 150]])
    found = nearest_codes(plain, targets, 200, normalisation, seed=7)
    assert torch.equal(found, codes[[3, 150]])
    noisy = targets + 0.1
    together = nearest_codes(plain, noisy, 200, normalisation, seed=7)
    assert torch.equal(together[1:], nearest_codes(plain, noisy[1:], 200, normalisation, seed=7))


def test_a_near_start_is_worth_iterations() -> None:
    """Of a generator that no inversion gets to the bottom of: from the nearest of many codes it ends nearer."""
    targets, errors = images(), {}
    names = [f"i{index}" for index in range(len(targets))]
    for starts in (1, 64):
        guarded = guard(latent_starts=starts)
        guarded.encode(targets, names)
        with torch.no_grad():
            rebuilt = guarded.generator(torch.stack([guarded.latents[sample] for sample in names]))
        errors[starts] = (rebuilt - targets).square().mean().item()
    assert errors[64] < 0.98 * errors[1]
