"""Where latent inversion starts."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from tests.shadow.little_guard import SIDE, Z, generator, guard, images

from shadow_defense.data.dataset import Normalisation
from shadow_defense.generators.interface import as_generator
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.encoding import RIDGE, inferred_codes

NORMALISATION = Normalisation((0.5,), (0.5,))


def test_a_code_is_that_of_ridge_regression_in_its_other_form_whatever_else_is_encoded() -> None:
    """``(X' X + a I)^-1 X' Z`` over pixels, where the code solves over examples; alone as together."""
    plain, targets = as_generator(generator(), Z), images()
    found = inferred_codes(plain, targets, 40, NORMALISATION, seed=7)
    z = torch.randn(40, Z, generator=named_generator(7, "latent examples"))
    with torch.no_grad():
        drawn = plain(z).flatten(1).double().numpy()
    centred = drawn - drawn.mean(0)
    ridge = RIDGE * np.square(centred).sum(1).mean()
    weights = np.linalg.solve(centred.T @ centred + ridge * np.eye(SIDE * SIDE), centred.T @ z.double().numpy())
    read = torch.from_numpy((targets.flatten(1).double().numpy() - drawn.mean(0)) @ weights)
    expected = math.sqrt(Z) * read / read.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found[2:], inferred_codes(plain, targets[2:], 40, NORMALISATION, seed=7))


def test_the_code_of_a_rendered_image_is_found_again() -> None:
    """Planted: images that other codes render; the direction is told, the length is the usual one."""
    plain = as_generator(generator(), Z)
    codes = torch.randn(8, Z, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = inferred_codes(plain, plain(codes), 200, NORMALISATION)
    assert F.cosine_similarity(found, codes).min() > 0.9
    torch.testing.assert_close(found.norm(dim=1), torch.full((8,), math.sqrt(Z)))


def test_a_near_start_is_worth_iterations() -> None:
    """Of a generator that no inversion gets to the bottom of: from a code read off the image it ends nearer."""
    targets, errors = images(), {}
    names = [f"i{index}" for index in range(len(targets))]
    for examples in (0, 64):
        guarded = guard(latent_examples=examples)
        guarded.encode(targets, names)
        with torch.no_grad():
            rebuilt = guarded.generator(torch.stack([guarded.latents[sample] for sample in names]))
        errors[examples] = (rebuilt - targets).square().mean().item()
    assert errors[64] < 0.98 * errors[0]
