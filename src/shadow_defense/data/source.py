"""What is said of a source of images beside its code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass

from shadow_defense.data.dataset import Parts
from shadow_defense.registry import Entry


@dataclass(frozen=True)
class Source(Entry):
    """A source of images by name.

    Attributes:
        read: takes, by name, those fields of :class:`DataSettings` (and the seed) that its signature lists; its
            ``options`` are checked and made into :attr:`options` before.
    """

    read: Callable[..., Parts]

    @property
    def accepts(self) -> Collection[str]:
        """What ``read`` takes."""
        return inspect.signature(self.read).parameters.keys()

    @property
    def needs_path(self) -> bool:
        """Whether nothing can be read without a file or folder."""
        path = inspect.signature(self.read).parameters.get("path")
        return path is not None and path.default is inspect.Parameter.empty
