"""Steps 5 to 7: which pixels an attacker can rebuild, spread over the image, remembered from round to round."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""


def reconstruction_error(
    images: Float[Tensor, "n c h w"], rebuilt: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """``E = (x - G'(z))^2`` for every pixel, in normalised units: small where the attacker can rebuild it."""
    return (images - rebuilt).square()


def vulnerability_map(error: Float[Tensor, "n c h w"], temperature: float = 20.0) -> Float64[Tensor, "n c h w"]:
    """``N1 = 1 / softmax(E / T)`` over all pixels of one image: large where the attacker can rebuild the pixel.

    In double precision, because the reciprocal spans more orders of magnitude than single precision holds at
    small temperatures. T is 20 in the authors' code and 1 in the article.
    """
    scores = (error.double() / temperature).flatten(1)
    logarithm = torch.logsumexp(scores, dim=1, keepdim=True) - scores
    # exp(700) is still finite: a map that rises above it is lowered as a whole, which keeps its order and ratios.
    excess = (logarithm.amax(dim=1, keepdim=True) - 700).clamp_min(0)
    return (logarithm - excess).exp().view_as(error)


def luminance(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    """One map an image: the only channel, or the weighted sum of three."""
    if maps.shape[1] == 1:
        return maps[:, 0]
    return torch.einsum("nchw,c->nhw", maps, maps.new_tensor(LUMINANCE))


def to_levels(maps: Float[Tensor, "n h w"]) -> Int64[Tensor, "n h w"]:
    """Min-max scale each map to the integers 0 to 255; a constant map becomes zeros."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scaled = (flat - low) / torch.where(high > low, high - low, torch.ones_like(high))
    return (scaled * 255).round().long().view_as(maps)


def equalise_histogram(levels: Int64[Tensor, "n h w"]) -> Int64[Tensor, "n h w"]:
    """Histogram-equalise each map to 256 levels: ``round(255 (cdf(v) - cdf_min) / (pixels - cdf_min))``.

    Every pixel keeps its place and no two change their order. The authors' code equalises over the whole batch,
    and a wrong reshape there moves pixels elsewhere (step 6 of docs/method.md).

    >>> equalise_histogram(torch.tensor([[[0, 0], [1, 255]]])).tolist()
    [[[0, 0], [128, 255]]]
    """
    flat = levels.flatten(1)
    counts = flat.new_zeros(len(flat), 256).scatter_add_(1, flat, torch.ones_like(flat))
    cumulative = counts.cumsum(1)
    lowest = torch.gather(cumulative, 1, flat.amin(1, keepdim=True))
    above = (flat.shape[1] - lowest).clamp_min(1)
    table = (255 * (cumulative - lowest) / above).round().long().clamp_min(0)
    return torch.gather(table, 1, flat).view_as(levels)


def spread(
    vulnerability: Float[Tensor, "n c h w"], *, equalise: bool = True, temperature: float = 20.0
) -> Float[Tensor, "n 1 h w"]:
    """``N2 = softmax(histogram_equalise(N1) / 20)`` over each image: positive, sums to 1 per image.

    Most mass lies on the most rebuildable pixels; colour images get the same map for every channel. Without
    ``equalise`` (an ablation) the 256 levels are used as they come.
    """
    levels = to_levels(luminance(vulnerability))
    if equalise:
        levels = equalise_histogram(levels)
    mass = torch.softmax(levels.float().flatten(1) / temperature, dim=1)
    return mass.view_as(levels).unsqueeze(1)


def blend(new: Float[Tensor, "1 h w"], previous: Float[Tensor, "1 h w"] | None, beta: float) -> Float[Tensor, "1 h w"]:
    """``N3 = beta * N3_previous + (1 - beta) * N2`` for one sample; in its first round N3 = N2.

    beta is 0.1 in the authors' code and 0.9 in the article.
    """
    return new if previous is None else beta * previous + (1 - beta) * new
