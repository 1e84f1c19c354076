"""A torch data set whose images are protected when they are first asked for, and kept."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from shadow_defense.errors import DataError
from shadow_defense.experiment.protecting.given_images import GivenImages, read_item
from shadow_defense.protection.frozen import FrozenProtection

TWICE = 16
"""Items that are asked for twice: one that is another each time would be protected anew each time."""


class ProtectedDataset(Dataset[Any]):
    """The items of a data set with x' in place of each image, of the same kind; all else of an item stays.

    Args:
        items: gives the image, or a tuple that begins with it, and the same one each time.
        frozen: by which it is protected.
    """

    def __init__(self, items: Any, frozen: FrozenProtection) -> None:
        self._items, self._frozen = items, frozen
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._kept:
            given, rest = _item(self._items, index)
            image = given.like(self._frozen.trained_on(given.images))
            self._kept[index] = image if rest is None else (image, *rest)
        return self._kept[index]


def read_items(items: Any) -> tuple[UInt8[Tensor, "n c h w"], list[Any]]:
    """All images of a data set, and what stands behind each, None where nothing does.

    Raises:
        DataError: for images of several sizes, and items that are others when they are asked for again.
    """
    images: list[Tensor] = []
    behind: list[Any] = []
    for index in range(len(items)):
        given, rest = _item(items, index)
        images.append(given.images)
        behind.append(rest[0] if rest else None)
        if given.images.shape != images[0].shape:
            raise DataError(
                f"item {index} is {tuple(given.images.shape[1:])} where item 0 is {tuple(images[0].shape[1:])}: bring "
                "them to one size before"
            )
    if not images:
        raise DataError("the data set is empty: expected images")
    if any(not torch.equal(_item(items, index)[0].images, images[index]) for index in range(min(TWICE, len(items)))):
        raise DataError(
            "the data set gives another image each time, so that each would be protected anew: leave random transforms "
            "out of it, and put them behind the protected one"
        )
    return torch.cat(images), behind


def _item(items: Any, index: int) -> tuple[GivenImages, tuple[Any, ...] | None]:
    item = items[index]
    image, rest = (item[0], tuple(item[1:])) if isinstance(item, tuple | list) and len(item) else (item, None)
    return read_item(image, f"the image of item {index}"), rest
