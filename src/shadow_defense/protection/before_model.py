"""The map that images go through before a model that was trained on mapped ones, made of public constants alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.protection.features import Features
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture


class Projection(nn.Module):
    """``x -> mean + B D V V^T w`` on images in [0, 1] (:meth:`.Task.tested`); made of public constants alone."""

    def __init__(self, texture: Task) -> None:
        super().__init__()
        whitening = texture.whitening
        self.register_buffer("mean", whitening.mean)
        self.register_buffer("reads", whitening.directions / whitening.deviations @ texture.spared)
        self.register_buffer("writes", whitening.coloured(texture.spared.T))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mean = self.get_buffer("mean")
        spared = (images.flatten(1) - mean) @ self.get_buffer("reads")
        return (mean + spared @ self.get_buffer("writes")).view_as(images)


class Reading(nn.Module):
    """``x -> mean + B D V phi(x)`` on images in [0, 1] (:meth:`.Features.kept`); made of public constants alone."""

    def __init__(self, texture: Features) -> None:
        super().__init__()
        self.reader = texture.reader
        self.register_buffer("mean", texture.whitening.mean)
        self.register_buffer("writes", texture.whitening.coloured(texture.spared.T))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (self.get_buffer("mean") + self.reader(images) @ self.get_buffer("writes")).view_as(images)


def module_of(texture: Texture) -> nn.Module:
    """What goes before the model at test time; the identity where the texture maps nothing."""
    if isinstance(texture, Features):
        return Reading(texture).eval()
    return Projection(texture).eval() if isinstance(texture, Task) else nn.Identity()


class BeforeModel(nn.Module):
    """The same on normalised images, as the first layer of a model: an image that was mapped stays as it is."""

    def __init__(self, map: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.map, self.normalisation = map, normalisation

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.normalisation.apply(self.map(self.normalisation.invert(images)))
