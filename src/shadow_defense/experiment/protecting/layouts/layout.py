"""What a layout is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from shadow_defense.data.dataset import ImageSet, Parts

Chunks = Iterable[Float[Tensor, "_ c h w"]]
"""The images of a part in their order, in [0, 1], some at a time: all of a large set would not fit in memory."""


class Layout(ABC):
    """A data set as it was read, which can be written with other images in place of its own.

    Attributes:
        title: what to call it.
    """

    title: str
    parts: Parts

    @abstractmethod
    def write(self, out: Path, pictures: Mapping[str, Chunks], kept: list[int]) -> None:
        """Write the data set below ``out``; what is there already stays.

        Args:
            pictures: of each part that there is, by name as in :meth:`sets`.
            kept: places of the training images that go out.
        """

    def sets(self) -> dict[str, ImageSet]:
        """The parts that there are: ``train``, ``validation``, ``test`` and ``public``."""
        every = {
            "train": self.parts.train,
            "validation": self.parts.validation,
            "test": self.parts.test,
            "public": self.parts.public,
        }
        return {name: each for name, each in every.items() if each is not None}
