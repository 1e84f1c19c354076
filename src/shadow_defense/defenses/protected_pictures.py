"""The images that were trained on in place of the clients' own, kept for the report."""

from __future__ import annotations

from torch import Tensor

from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.shadow.sample_store import pack_samples


class ProtectedPictures:
    """Of one round and of the samples that the report asked for, as they were trained on last."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forget the last round's."""
        self._kept = {}

    def keep(self, batch: Batch, context: RoundContext) -> None:
        """Copy what ``context`` asks for out of a protected batch; its images are normalised."""
        for sample, picture in zip(batch.sample_ids, batch.images, strict=True):
            if sample in context.explain:
                self._kept[sample] = picture.detach().cpu().clone()

    def explanations(self) -> dict[str, Tensor]:
        """``protected::values`` and ``protected::names``, as :class:`~shadow_defense.defenses.base.Defense` wants."""
        return {f"protected::{part}": tensor for part, tensor in pack_samples(self._kept).items()}
