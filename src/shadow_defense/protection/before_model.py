"""The map that images go through before a model that was trained on mapped ones, made of public constants alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation


class BeforeModel(nn.Module):
    """The same on normalised images, as the first layer of a model: an image that was mapped stays as it is."""

    def __init__(self, map: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.map, self.normalisation = map, normalisation

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.normalisation.apply(self.map(self.normalisation.invert(images)))
