"""Two models asked together, such as a federated one and a network of the public images (docs/protect.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import ModelError
from shadow_defense.models.functional import training_mode

AT_ONCE = 256
LEAST_SPREAD = 1e-6
"""Below which a model says the same of all images, but for rounding."""


def weight(logits: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """``1 / s``, s the root of the mean variance over images of the centred logits ``l - mean_k l``: how much a model's
    answers differ. 0 where they don't.

    >>> weight(torch.tensor([[0.0, 2.0], [6.0, 0.0]]))
    tensor(0.5000)
    """
    spread = (logits - logits.mean(dim=1, keepdim=True)).var(dim=0, correction=0).mean().sqrt()
    return torch.where(spread > LEAST_SPREAD, 1 / spread, 0.0)


def together(
    logits: Sequence[Float[Tensor, "n classes"]], weights: Sequence[Float[Tensor, ""]]
) -> Float[Tensor, "n classes"]:
    """``sum_i (l_i - mean_k l_i) / s_i``, so that the surer model does not outvote the other (:func:`weight`).

    Log probabilities do as well as logits.
    """
    parts = [(each - each.mean(dim=1, keepdim=True)) * own for each, own in zip(logits, weights, strict=True)]
    return torch.stack(parts).sum(dim=0)


class Together(nn.Module):
    """Models that answer together; all read the same images."""

    def __init__(self, models: Sequence[nn.Module], weights: Float[Tensor, " m"]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.register_buffer("weights", weights)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return together([model(images) for model in self.models], list(self.get_buffer("weights")))


def answer_together(models: Sequence[nn.Module], images: Float[Tensor, "n c h w"]) -> Together:
    """The models as one, in eval mode, whose logits are :func:`together`'s.

    Args:
        models: that read the same images, and give one logit a class.
        images: as the models read them, such as validation images, by which answers are weighed; two at least.

    Raises:
        ModelError: for fewer than two images, or models that give different classes.
    """
    if len(images) < 2:
        raise ModelError(f"how much answers differ was to be measured on {len(images)} images: give two at least")
    weights, shapes = [], set()
    for model in models:
        with torch.no_grad(), training_mode(model, False):
            logits = torch.cat([model(part) for part in images.split(AT_ONCE)])
        shapes.add(tuple(logits.shape))
        weights.append(weight(logits))
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ModelError(
            f"the models give logits of shape {' and '.join(map(str, sorted(shapes)))}: expected one a class of each"
        )
    return Together(models, torch.stack(weights)).eval()
