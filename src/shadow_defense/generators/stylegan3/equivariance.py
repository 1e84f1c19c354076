"""How exactly a StyleGAN3's images move with its input: the figure EQ-T of Karras et al. (2021)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator

DYNAMIC_RANGE = 2.0
"""I_max: images lie in [-1, 1]."""


@torch.no_grad()
def translation_equivariance(
    generator: StyleGAN3Generator, z: Float[Tensor, "n z"], shifts: Int[Tensor, "moves 2"]
) -> float:
    """EQ-T in dB: the peak signal-to-noise ratio between images of a moved input, and moved images.

    ``EQ-T = 10 log10(I_max^2 / E[(g(t_d[z0]; w)_c(p) - t_d[g(z0; w)]_c(p))^2])``, the mean over codes w, shifts d,
    channels c and those pixels p that both images have; I_max = 2 (Karras et al. 2021, section 3 and appendix E).
    The paper draws d uniformly from whole pixels up to an eighth of the image's side; its networks for AFHQv2 have
    60 dB (T) and 65 dB (R), where StyleGAN2, whose detail sticks to the pixel grid, has 14 dB.

    Moving the input by d pixels composes the user's transform, which maps places of the image to places of the
    Fourier features, with a translation by -d / image_size (docs/generators.md). The transform is put back afterwards.

    Args:
        z: latent codes; a conditional generator weighs all classes alike.
        shifts: (right, down) in whole pixels, each shorter than the image's side.

    Returns:
        Decibels; infinity when all pixels are equal.

    Raises:
        GeneratorError: when there is no shift, or one that moves the whole image away.
    """
    side = generator.image_size
    if len(shifts) == 0 or int(shifts.abs().max()) >= side:
        raise GeneratorError(
            f"{len(shifts)} shifts were given for images of {side} px: expected one or more, each of less than {side} "
            f"pixels; draw them from -{side // 8} to {side // 8} as the paper does"
        )
    place = generator.synthesis.input
    transform = place.transform
    still = generator(z)
    squared, count = 0.0, 0
    try:
        for right, down in shifts.tolist():
            translation = torch.eye(3, dtype=transform.dtype, device=transform.device)
            translation[:2, 2] = transform.new_tensor([-right / side, -down / side])
            place.transform = transform @ translation
            error = _part(generator(z), right, down) - _part(still, -right, -down)
            squared += float(error.double().square().sum())
            count += error.numel()
    finally:
        place.transform = transform
    return 10 * math.log10(DYNAMIC_RANGE**2 * count / squared) if squared > 0 else math.inf


def _part(images: Tensor, right: int, down: int) -> Tensor:
    """What is left of images when their first ``right`` columns and ``down`` rows are cut, the last when negative."""
    height, width = images.shape[2:]
    return images[:, :, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
