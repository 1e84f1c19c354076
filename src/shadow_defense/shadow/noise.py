"""Step 9: scale the noise map and add it to the image; and the controls that place the same energy elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.errors import DefenseError
from shadow_defense.seeds import uniform

Schedule = Literal["growing", "constant", "decaying", "frozen"]
Placement = Literal["targeted", "shuffled", "uniform"]

EXPONENTS: dict[Schedule, int] = {"growing": 1, "constant": 0, "decaying": -1, "frozen": 0}
"""For each schedule the ``e`` of :func:`noise_amplitude`."""


def noise_amplitude(round: int, rounds: int, strength: float = 0.19, *, schedule: Schedule = "growing") -> float:
    """``w = strength * exp(e r / R)``: the noise's peak as a share of the image's; all schedules begin at ``strength``.

    The paper's e is 1 (growing; step 9 of docs/method.md). The others are ours: 0 (constant; frozen, where the noise
    itself is the first one too) and -1 (decaying), since the first rounds leak most.

    >>> f"{noise_amplitude(0, 100):.4f} {noise_amplitude(100, 100):.4f}"
    '0.1900 0.5165'
    """
    return strength * math.exp(EXPONENTS[schedule] * round / rounds)


def scale_noise(
    noise_map: Float[Tensor, "n c h w"], images: Float[Tensor, "n k h w"], amplitude: float, least_peak: float = 0.0
) -> Float[Tensor, "n k h w"]:
    """``N = |max(x) / max(N4) * w| * N4``, with the maxima over each whole image; normalised units.

    In normalised units max(x) tells how far the brightest pixel is from the mean: where the two are near, the paper's
    formula (``least_peak`` 0) gives next to no noise. ``|max(x)|`` therefore counts as ``least_peak`` at least.

    A map of zeros gives no noise.
    """
    peak = noise_map.flatten(1).amax(1)
    brightest = images.flatten(1).amax(1).abs().clamp_min(least_peak)
    factor = (brightest / torch.where(peak != 0, peak, torch.ones_like(peak)) * amplitude).abs()
    return (factor.view(-1, 1, 1, 1) * noise_map).expand_as(images)


def shuffle_noise(noise: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """A control: the same values at random places, the same places for every channel."""
    flat = noise.flatten(2)
    orders = torch.stack([torch.randperm(flat.shape[2], generator=generator) for _ in flat]).to(noise.device)
    return flat.gather(2, orders.unsqueeze(1).expand_as(flat)).view_as(noise)


def uniform_noise(noise: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """A control: independent values, uniform in [-1, 1], scaled to the energy that ``noise`` has on each image."""
    drawn = uniform(noise.shape, generator, noise.dtype).to(noise.device) * 2 - 1
    energy = torch.linalg.vector_norm(noise.flatten(1), dim=1) / torch.linalg.vector_norm(drawn.flatten(1), dim=1)
    return drawn * energy.view(-1, 1, 1, 1)


def place_noise(
    noise: Float[Tensor, "n c h w"], placement: Placement, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Where the map says (targeted), or one of the two controls."""
    if placement == "shuffled":
        return shuffle_noise(noise, generator)
    if placement == "uniform":
        return uniform_noise(noise, generator)
    return noise


def check_noise(noise: Float[Tensor, "n c h w"], samples: Sequence[str]) -> None:
    """Raise :class:`DefenseError`, naming the sample, where an image would get no noise, or noise that is no number."""
    for sample, each in zip(samples, noise, strict=True):
        if not torch.isfinite(each).all():
            raise DefenseError(f"the noise of image '{sample}' holds NaN or infinity: no update leaves")
        if not each.any():
            raise DefenseError(
                f"image '{sample}' would get no noise, since its brightest pixel is at the normalisation's mean: set "
                "`floor` above 0"
            )
