"""The network of the public images: what everybody may know of the task, without any client (docs/protect.md)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.protection.directions import Classifier


class PublicNetwork(nn.Module):
    """A classifier of images in [0, 1], which it normalises itself."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model, self.normalisation = classifier.model, classifier.normalisation

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.model(self.normalisation.apply(images))
