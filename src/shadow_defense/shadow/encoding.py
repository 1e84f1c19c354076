"""Step 2 on named samples: where each code starts, in which latent space, and what inversion makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def starting_codes(
    generator: Generator, sample_ids: Sequence[str], like: Tensor, *, space: LatentSpace = "z", seed: int = 0
) -> Float[Tensor, "n *code"]:
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


def nearest_codes(
    generator: Generator,
    images: Float[Tensor, "n c h w"],
    count: int,
    normalisation: Normalisation,
    *,
    space: LatentSpace = "z",
    seed: int = 0,
) -> Float[Tensor, "n *code"]:
    """Of ``count`` codes ``encode(z, space)``, ``z ~ N(0, I)``, for each image that of the least squared error.

    The codes are the same for all images, so that they are rendered once; an image's own does not depend on the others.
    """
    z = torch.randn(count, generator.z_dim, generator=named_generator(seed, "latent starts")).to(images)
    size, flat = (images.shape[2], images.shape[3]), images.flatten(1)
    with torch.no_grad():
        codes = generator.encode(z, space)
        distances = [
            # By matrix products the distance of two images would depend on how many there are.
            torch.cdist(flat, rendered.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
            for rendered in (
                render(generator, {}, part, size, normalisation, space=space) for part in codes.split(ENCODED_AT_ONCE)
            )
        ]
    return codes[torch.cat(distances, dim=1).argmin(1)]


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
    starts: int = 1,
    progress: Progress | None = None,
) -> Float[Tensor, "n *code"]:
    """The latent codes of ``images`` (step 2 of docs/method.md), found with the generator as it was given.

    Args:
        images: normalised images to encode.
        sample_ids: a stable name for each image.
        iterations: most iterations of latent inversion; 0 keeps the starting codes.
        starts: 1: each image starts from a code of its own; more: from the nearest of so many (:func:`nearest_codes`).

    Raises:
        GeneratorError: when the generator has no such space.
    """
    task = (progress or Progress()).start("encoding images", len(images))
    found = []
    with training_mode(generator, False):
        if starts == 1:
            initial = starting_codes(generator, sample_ids, images, space=space, seed=seed)
        else:
            initial = nearest_codes(generator, images, starts, normalisation, space=space, seed=seed)
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
