"""From latent codes to images as the task model sees them."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.dataset import Normalisation
from shadow_defense.generators.interface import Decoder, Generator, LatentSpace
from shadow_defense.models.functional import functional_call


def render(
    generator: Generator,
    synthesis: Mapping[str, Tensor],
    codes: Float[Tensor, " n *code"],
    image_size: tuple[int, int],
    normalisation: Normalisation,
    *,
    space: LatentSpace = "z",
) -> Float[Tensor, "n c h w"]:
    """``normalise(resize(clamp(G(z), -1, 1)))`` (step 2 of docs/method.md).

    Args:
        synthesis: parameters that stand in for the generator's own, by name; {} uses its own.
        image_size: (height, width) of the result, in pixels.
        space: the latent space that ``codes`` are of; for w and w+, G is the synthesis network alone.

    Raises:
        GeneratorError: when the generator has no such space.
    """
    substituted = {f"generator.{name}": tensor for name, tensor in synthesis.items()}
    images = functional_call(Decoder(generator, space), substituted, (codes,)).clamp(-1, 1)
    if images.shape[-2:] != image_size:
        # Anti-aliased, where the authors' code takes the nearest pixel: that would drop gradients between them.
        images = F.interpolate(images, size=image_size, mode="bilinear", antialias=True, align_corners=False)
    return normalisation.apply((images + 1) / 2)
