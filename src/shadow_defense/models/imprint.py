"""A layer by which a malicious server reads its clients' images (Fowl et al. 2022; docs/attacks.md)."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.seeds import named_generator

SMALLNESS = 1e-3
"""Factor of the layer's weights and biases, undone behind it: its update is as much larger, so that the difference of
two states in single precision loses no digits of it."""

BEYOND = 10.0
"""Standard deviations below the mean at which the first bin opens: every image is in one."""


def brightness_cutoffs(mean: float, deviation: float, bins: int) -> Float[Tensor, "bins"]:
    """Where bins begin so that a normally distributed brightness falls into each with the same probability, rising.

    Args:
        mean, deviation: of the mean brightness of normalised images, measured on public ones.
        bins: 2 or more; twice the number of images and more, so that most have a bin of their own.

    >>> [round(cutoff, 3) for cutoff in brightness_cutoffs(0.0, 1.0, 4).tolist()]
    [-10.0, -0.674, 0.0, 0.674]
    """
    shares = torch.arange(1, bins, dtype=torch.float64) / bins
    quantiles = torch.cat([torch.tensor([-BEYOND], dtype=torch.float64), torch.special.ndtri(shares)])
    return (mean + deviation * quantiles).float()


class ImprintedModel(nn.Module):
    """A model behind a layer that sorts images into bins by brightness; the client sees an ordinary module.

    ``a_i = relu(mean(x) - c_i)`` for rising cutoffs c, and ``body(x + mean_i(a_i) P)`` with a fixed pattern P: unit i
    is active for images brighter than its cutoff, and all units that an image makes active get the same gradient.

    Args:
        body: the agreed model, copied.
        cutoffs: as of :func:`brightness_cutoffs`, in normalised units.
    """

    pattern: Tensor

    def __init__(self, body: nn.Module, image_shape: tuple[int, int, int], cutoffs: Float[Tensor, "bins"]) -> None:
        super().__init__()
        pixels = torch.Size(image_shape).numel()
        # Without an initialisation, which would draw from the global state.
        self.imprint = nn.utils.skip_init(nn.Linear, pixels, len(cutoffs))
        with torch.no_grad():
            self.imprint.weight.fill_(SMALLNESS / pixels)
            self.imprint.bias.copy_(-SMALLNESS * cutoffs)
        # Not a constant: a body with batch norm takes no notice of brightness, and would send nothing back.
        self.register_buffer("pattern", torch.randn(1, *image_shape, generator=named_generator(0, "imprint")))
        self.body = copy.deepcopy(body)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the body, for normalised images."""
        active = self.imprint(images.flatten(1)).relu().mean(dim=1) / SMALLNESS
        return self.body(images + active.view(-1, 1, 1, 1) * self.pattern)
