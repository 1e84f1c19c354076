"""What a texture is: a part of the image that is kept, and a part that is drawn from the site's secret."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.protection.linear_view import LinearView
from shadow_defense.protection.whitening import Whitening
from shadow_defense.seeds import standard_normal


class Texture(ABC):
    """``x' = kept(x) + added(draws)``: the one depends on the image alone, the other on the draws alone.

    Whoever knows the draws can therefore take the added part off; what the kept part has lost, nobody can.
    """

    maps = False
    """Whether it is trained on :meth:`mapped` images, so that :meth:`tested` goes before the model at test time."""

    def __init__(self, whitening: Whitening) -> None:
        self.whitening = whitening

    def mapped(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Protected images as the model is trained on them: a map of public constants; here as they are."""
        return images

    def tested(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Clean images as the model is given them at test time: a map of public constants; here as they are."""
        return images

    def module(self) -> nn.Module:
        """:meth:`tested` as a module that goes before the model at test time; the identity where nothing is mapped."""
        return nn.Identity()

    @abstractmethod
    def kept(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The part that depends on the image; images in [0, 1]."""

    @abstractmethod
    def added(self, draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        """The part that is drawn, one image for each generator; the same generator state gives the same image."""

    @abstractmethod
    def view(self) -> LinearView:
        """What an attacker knows of x' who knows all but the draws."""

    def basis(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """What of clean images x' is a linear view of to the last digit; here the images themselves."""
        return images

    def basis_view(self) -> LinearView:
        """What an attacker knows of x' who has the :meth:`basis` of a clean image."""
        return self.view()

    def through_map(self, view: LinearView) -> LinearView:
        """The same view of mapped images."""
        return view

    def known_view(self) -> LinearView:
        """What the same attacker knows of the kept part alone."""
        return self.view().known()

    def protect(self, images: Float[Tensor, "n c h w"], draws: Sequence[torch.Generator]) -> Float[Tensor, "n c h w"]:
        """x' of every image, neither clipped nor rounded."""
        return self.kept(images) + self.added(draws)


def normal(draws: Sequence[torch.Generator], *shape: int) -> Float[Tensor, "n ..."]:
    """Standard normal numbers, a row of ``shape`` from each generator."""
    return torch.stack([standard_normal(shape, each) for each in draws])


def white_floor(floor: float, draws: Sequence[torch.Generator], *shape: int) -> Float[Tensor, "n ..."]:
    """White noise of deviation ``floor``; none is drawn where that is 0: at 224 px it would be most of the cost."""
    return floor * normal(draws, *shape) if floor else torch.zeros(len(draws), *shape)
