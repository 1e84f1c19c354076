"""What is said of a source of images beside its code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from shadow_defense.registry import Entry, imported

if TYPE_CHECKING:
    from shadow_defense.data.dataset import Parts


@dataclass(frozen=True)
class Source(Entry):
    """A source of images by name.

    Attributes:
        read: takes, by name, those fields of :class:`DataSettings` (and the seed) that its signature lists; its
            ``options`` are checked and made into :attr:`options` before. Or ``module:function``, which is imported
            when the source is read, so that it can be listed without.
        in_words: what pages call its images; None: by the name of the data.
    """

    read: Callable[..., Parts] | str
    in_words: str | None = None

    @cached_property
    def reader(self) -> Callable[..., Parts]:
        """The function itself."""
        return imported(self.read) if isinstance(self.read, str) else self.read

    @property
    def accepts(self) -> Collection[str]:
        """What :attr:`reader` takes."""
        return inspect.signature(self.reader).parameters.keys()

    @property
    def needs_path(self) -> bool:
        """Whether nothing can be read without a file or folder."""
        path = inspect.signature(self.reader).parameters.get("path")
        return path is not None and path.default is inspect.Parameter.empty
