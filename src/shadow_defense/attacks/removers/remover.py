"""What every remover does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Removal:
    """What a remover makes of protected images.

    Attributes:
        estimates: of the clean images, in [0, 1].
        doubt: a number for each that the attacker can compute without the truth; a greater one goes with more error or
            less, which the attacker learns from images of its own (:mod:`~.choosing`).
    """

    estimates: Float[Tensor, "n c h w"]
    doubt: Float[Tensor, " n"]


class Remover(ABC):
    """An attack on protected images themselves; it knows the texture, public images and labels, and no secret."""

    name: str

    @abstractmethod
    def remove(self, protected: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Removal:
        """Estimates of the clean images; protected images as they were drawn, neither clipped nor rounded."""
