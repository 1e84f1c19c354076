"""Step 2 on named samples: where each code starts, in which latent space, and what inversion makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.dataset import Normalisation
from shadow_defense.generators.interface import Generator, LatentSpace
from shadow_defense.models.functional import training_mode
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.latents import invert_latents
from shadow_defense.shadow.rendering import render

ENCODED_AT_ONCE = 64
"""Images a batch of latent inversion, and codes that are rendered at once: codes do not depend on it, memory does."""

RIDGE = 0.3
"""Of the linear map from images to codes, in units of a drawn image's mean squared length."""


def starting_codes(
    generator: Generator, sample_ids: Sequence[str], like: Tensor, *, space: LatentSpace = "z", seed: int = 0
) -> Float[Tensor, " n *code"]:
    """``encode(z_i, space)`` of ``z_i ~ N(0, I)``, in the mode that the generator is in.

    Drawn in z whatever the space, so that all spaces start from the same images; each draw is named by its sample,
    so that a code does not depend on the order in which samples are seen.

    Args:
        like: gives device and type.
    """
    z = torch.stack(
        [torch.randn(generator.z_dim, generator=named_generator(seed, "latent", sample)) for sample in sample_ids]
    ).to(like)
    with torch.no_grad():
        return generator.encode(z, space)


def inferred_codes(
    generator: Generator,
    images: Float[Tensor, "n c h w"],
    count: int,
    normalisation: Normalisation,
    *,
    space: LatentSpace = "z",
    seed: int = 0,
) -> Float[Tensor, " n *code"]:
    """``encode(z, space)`` of the z that a linear map reads off each image, at the length that codes have.

    Ridge regression of z on G(z) over ``count`` draws of ``z ~ N(0, I)``: with the centred images X of the draws Z,
    ``z(x) = Z' (X X' + a I)^-1 X (x - mean)``, then ``z sqrt(dim) / ||z||_2``, a from :data:`RIDGE`. The draws are the
    same for all images; an image's code does not depend on the others.
    """
    z = torch.randn(count, generator.z_dim, generator=named_generator(seed, "latent examples")).to(images)
    size = (images.shape[2], images.shape[3])
    with torch.no_grad():
        codes = generator.encode(z, space).split(ENCODED_AT_ONCE)
        drawn = torch.cat([render(generator, {}, each, size, normalisation, space=space) for each in codes]).flatten(1)
        mean = drawn.mean(0)
        centred = drawn - mean
        products = centred @ centred.T
        ridge = RIDGE * products.diagonal().mean().clamp_min(1e-12)
        weights = centred.T @ torch.linalg.solve(products + ridge * torch.eye(count).to(products), z)
        # One after the other: in a product of matrices an image's digits would depend on how many there are.
        read = torch.stack([(image - mean) @ weights for image in images.flatten(1)])
        return generator.encode(math.sqrt(generator.z_dim) * F.normalize(read, dim=1), space)


def encode_samples(
    generator: Generator,
    images: Float[Tensor, "n c h w"],
    sample_ids: Sequence[str],
    normalisation: Normalisation,
    *,
    space: LatentSpace = "z",
    seed: int = 0,
    learning_rate: float = 1e-3,
    iterations: int = 500,
    examples: int = 0,
    progress: Progress | None = None,
) -> Float[Tensor, " n *code"]:
    """The latent codes of ``images`` (step 2 of docs/method.md), found with the generator as it was given.

    Args:
        images: normalised images to encode.
        sample_ids: a stable name for each image.
        iterations: most iterations of latent inversion; 0 keeps the starting codes.
        examples: 0: each image starts from a random code of its own; more: from what a linear map reads off it that was
            fitted to so many (:func:`inferred_codes`).

    Raises:
        GeneratorError: when the generator has no such space.
    """
    task = (progress or Progress()).start("encoding images", len(images))
    found = []
    with training_mode(generator, False):
        if examples:
            initial = inferred_codes(generator, images, examples, normalisation, space=space, seed=seed)
        else:
            initial = starting_codes(generator, sample_ids, images, space=space, seed=seed)
        # Detached: only the code is sought, and the graph need not hold what the parameters' gradients would take.
        pretrained = {name: parameter.detach() for name, parameter in generator.synthesis_parameters().items()}
        for chunk, start in zip(images.split(ENCODED_AT_ONCE), initial.split(ENCODED_AT_ONCE), strict=True):
            inversion = invert_latents(
                lambda codes: render(
                    generator, pretrained, codes, (images.shape[2], images.shape[3]), normalisation, space=space
                ),
                chunk,
                start,
                learning_rate=learning_rate,
                iterations=iterations,
            )
            found.append(inversion.z)
            task.advance(len(chunk))
    task.finish()
    return torch.cat(found)
