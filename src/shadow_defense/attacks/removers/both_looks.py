"""An earlier protection of the same images, of which the attacker has seen something too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.linking import likelihoods
from shadow_defense.attacks.removers.lmmse import linear_removal
from shadow_defense.attacks.removers.remover import Removal
from shadow_defense.protection.texture import Texture

NAME = "lmmse of both looks"


@dataclass(frozen=True)
class EarlierLook:
    """Attributes:
    texture: with the whitening of the later one.
    protected: the same images in the same order, by draws of their own.
    """

    texture: Texture
    protected: Float[Tensor, "n c h w"]

    def removal(self, texture: Texture, looks: Sequence[Float[Tensor, "n c h w"]]) -> Removal:
        """LMMSE of the later and the earlier look together (:func:`~.lmmse.linear_removal`)."""
        both = linear_removal(texture.whitening, [texture.view(), self.texture.view()])
        return Removal(both.images(looks), both.coordinates(looks).square().sum(dim=1))

    def likelihoods(
        self, texture: Texture, protected: Float[Tensor, "n c h w"], gallery: Float[Tensor, "m c h w"]
    ) -> Float[Tensor, "n m"]:
        """The sum of both looks' log likelihoods, whose draws are independent; as :func:`~.linking.likelihoods`."""
        looks = [(texture, protected), (self.texture, self.protected)]
        return likelihoods(texture.whitening, looks, gallery)
