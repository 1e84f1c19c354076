"""A layer by which a malicious server reads its clients' images (Fowl et al. 2022; docs/attacks.md)."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.seeds import named_generator

SMALLNESS = 1e-3
"""Factor of the layer's weights and biases, undone behind it. Beside them its update is so much larger that the
difference of two states in single precision loses no digits of it, and that a trained unit is thrown out of its bin."""

BEYOND = 10.0
"""Standard deviations from the mean at which the first bin opens and the last one closes: every image is in one."""


def brightness_edges(mean: float, deviation: float, bins: int) -> Float[Tensor, " edges"]:
    """Between which bins lie so that a normally distributed brightness falls into each with the same probability.

    Args:
        mean, deviation: of the mean brightness of normalised images, measured on public ones.
        bins: 2 or more; twice the number of images and more, so that most have a bin of their own.

    Returns:
        One more than bins, rising.

    >>> [round(edge, 3) for edge in brightness_edges(0.0, 1.0, 4).tolist()]
    [-10.0, -0.674, 0.0, 0.674, 10.0]
    """
    shares = torch.arange(1, bins, dtype=torch.float64) / bins
    ends = torch.tensor([-BEYOND, BEYOND], dtype=torch.float64)
    quantiles = torch.cat([ends[:1], torch.special.ndtri(shares), ends[1:]])
    return (mean + deviation * quantiles).float()


class ImprintedModel(nn.Module):
    """A model behind a layer that sorts images into bins by brightness; the client sees an ordinary module.

    ``a_i = clamp((mean(x) - e_i) / (e_(i+1) - e_i), 0, 1)`` for rising edges e, and ``body(x + mean_i(a_i) P)`` with a
    fixed pattern P. A unit has a slope for images of its own bin alone, so that no other has part in its update: the
    variant of Fowl et al. for several local steps. The first step on such an image moves the unit so far that no
    image is in its bin any more: it holds that one, whatever steps follow.

    Args:
        body: the agreed model, copied.
        edges: as of :func:`brightness_edges`, in normalised units.
    """

    pattern: Tensor

    def __init__(self, body: nn.Module, image_shape: tuple[int, int, int], edges: Float[Tensor, " edges"]) -> None:
        super().__init__()
        pixels, widths = torch.Size(image_shape).numel(), edges.diff()
        # Without an initialisation, which would draw from the global state.
        self.imprint = nn.utils.skip_init(nn.Linear, pixels, len(widths))
        with torch.no_grad():
            self.imprint.weight.copy_((SMALLNESS / pixels / widths).unsqueeze(1).expand(-1, pixels))
            self.imprint.bias.copy_(-SMALLNESS * edges[:-1] / widths)
        # Not a constant: a body with batch norm takes no notice of brightness, and would send nothing back.
        self.register_buffer("pattern", torch.randn(1, *image_shape, generator=named_generator(0, "imprint")))
        self.body = copy.deepcopy(body)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the body, for normalised images."""
        active = (self.imprint(images.flatten(1)) / SMALLNESS).clamp(0, 1).mean(dim=1)
        return self.body(images + active.view(-1, 1, 1, 1) * self.pattern)
