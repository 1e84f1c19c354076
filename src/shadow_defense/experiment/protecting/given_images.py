"""Images as Python programs hold them: arrays, tensors, pictures, data sets of any of these, also with protected ones
in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from shadow_defense.data.grey_levels import unit_to_bytes
from shadow_defense.data.images import as_bytes
from shadow_defense.errors import DataError
from shadow_defense.protection.frozen import FrozenProtection


@dataclass(frozen=True)
class GivenImages:
    """Images, and how others are given back in their place.

    Attributes:
        images: at 256 levels.
        like: from images in [0, 1] to the same kind, type and order of axes as those that were given.
    """

    images: UInt8[Tensor, "n c h w"]
    like: Callable[[Float[Tensor, "m c h w"]], Any]


def read_given(given: Any, what: str = "images") -> GivenImages:
    """A batch of images: (n, h, w), (n, c, h, w) or (n, h, w, c), bytes or floats in [0, 1].

    Raises:
        DataError: for anything else.
    """
    if not isinstance(given, np.ndarray | Tensor):
        raise DataError(f"{what} are of type {type(given).__name__}: expected a NumPy array or a tensor")
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    order = _axes(values.shape, what)
    planes = values[:, None] if order == "grey" else values if order == "first" else values.transpose(0, 3, 1, 2)
    if values.dtype.kind == "f":
        planes = unit_to_bytes(planes, what)
    if planes.dtype != np.uint8:
        raise DataError(f"{what} are of type {values.dtype}: expected bytes (uint8), or floats in [0, 1]")

    def like(images: Float[Tensor, "m c h w"]) -> Any:
        made = images if values.dtype.kind == "f" else as_bytes(images)
        made = made[:, 0] if order == "grey" else made if order == "first" else made.permute(0, 2, 3, 1)
        if isinstance(given, Tensor):
            return made.to(given.device, given.dtype)
        return np.ascontiguousarray(made.numpy().astype(values.dtype))

    return GivenImages(torch.from_numpy(np.array(planes, order="C")), like)


def _axes(shape: tuple[int, ...], what: str) -> str:
    if len(shape) == 3 and 0 not in shape:
        return "grey"
    if len(shape) == 4 and 0 not in shape:
        if shape[1] in (1, 3):
            return "first"
        if shape[3] in (1, 3):
            return "last"
    raise DataError(f"{what} of shape {tuple(shape)}: expected (n, h, w), (n, c, h, w) or (n, h, w, c), c 1 or 3")


def read_item(image: Any, what: str) -> GivenImages:
    """One image of a data set: a tensor or array without the first axis, or a Pillow picture of mode L or RGB.

    Raises:
        DataError: for anything else.
    """
    if isinstance(image, np.ndarray | Tensor):
        found = read_given(image[None], what)
        return GivenImages(found.images, lambda images: found.like(images)[0])
    from PIL import Image

    if not isinstance(image, Image.Image) or image.mode not in ("L", "RGB"):
        kind = f"a picture of mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
        raise DataError(f"{what} is {kind}: expected an array, a tensor, or a picture of mode L or RGB")
    found = read_given(np.asarray(image)[None], what)
    return GivenImages(found.images, lambda images: Image.fromarray(found.like(images)[0]))


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
