"""Batches that are protected as a training draws them, in the form in which its loader gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.errors import DataError, DefenseError


@dataclass
class Guarding:
    """A round in which batches are protected; ``batches`` counts them."""

    defense: Defense
    round: RoundContext
    batches: int = 0


_GUARDING: ContextVar[Guarding | None] = ContextVar("guarding", default=None)


@contextmanager
def guarding(defense: Defense, round: RoundContext) -> Iterator[Guarding]:
    """For the block, :func:`guarded` loaders are protected by ``defense``."""
    now = Guarding(defense, round)
    token = _GUARDING.set(now)
    try:
        yield now
    finally:
        _GUARDING.reset(token)


class guarded:  # noqa: N801
    """A loader whose batches come protected, in the form in which the loader gives them.

    A batch is a mapping or a sequence. Its images are the one floating-point tensor (n, c, h, w) in it, normalised; its
    labels the one other tensor with n rows of whole numbers. An image is known again by its values: augment what comes
    out of here, for every view that goes in is another image (docs/guard.md).

    Args:
        model: that is trained on the batches, as it stands when each is drawn.
        loss_fn: of the training step.

    Raises:
        DefenseError: where neither a :class:`ShadowGuardMod` nor a :class:`ShadowGuardSite` guards the training.
        DataError: for a batch of another form.
    """

    def __init__(
        self, loader: Iterable[Any], model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    ) -> None:
        now = _GUARDING.get()
        if now is None:
            raise DefenseError(
                "nothing guards this training: write ClientApp(mods=[ShadowGuardMod(...)]) on Flower, "
                "take its rounds by ShadowGuardSite(...).receive() on NVFlare"
            )
        self._loader, self._now = loader, now
        self._round = replace(now.round, model=model, loss_fn=loss_fn)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            keys = list(batch) if isinstance(batch, Mapping) else list(range(len(batch)))
            images, labels = _places(batch, keys)
            names = tuple(_name(image) for image in batch[images])
            given = Batch(batch[images], batch[labels], names)
            protected = self._now.defense.protect_batch(given, self._round)
            self._now.batches += 1
            changed = {key: protected.images if key == images else batch[key] for key in keys}
            yield changed if isinstance(batch, Mapping) else type(batch)(changed.values())

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # What a training reads of its loader beside the batches, such as its data set's length.
        return getattr(self.__dict__["_loader"], name)


def _places(batch: Any, keys: list[Any]) -> tuple[Any, Any]:
    tensors = {key: batch[key] for key in keys if isinstance(batch[key], Tensor)}
    images = [key for key, each in tensors.items() if each.dim() == 4 and each.is_floating_point()]
    labels = [
        key
        for key, each in tensors.items()
        if each.dim() and images and len(each) == len(tensors[images[0]]) and not each.is_floating_point()
    ]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"a batch has {len(images)} floating-point tensors (n, c, h, w) and {len(labels)} of whole numbers with n "
            "rows: expected one of each, the images and their labels"
        )
    return images[0], labels[0]


def _name(image: Tensor) -> str:
    values = image.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
