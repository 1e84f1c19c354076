"""What is said of an attack beside its code."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from shadow_defense.registry import Entry

ANY_MODEL = "any"


@dataclass(frozen=True)
class AttackKind(Entry):
    """An attack by name.

    Attributes:
        options: an :class:`~shadow_defense.attacks.observation.Attack` that is a pydantic model, whose fields are
            its settings.
        model: what the global model must be like; other models are refused with :class:`ModelError`.
        searches_pixels: whether it looks for images by matching updates alone, so that their contrast is what the
            updates make of it (:mod:`~shadow_defense.attacks.contrast`): not where a generator or a network that has
            seen images sets it, or equations do.
    """

    model: str = ANY_MODEL
    searches_pixels: bool = False

    @property
    def attack(self) -> type[BaseModel]:
        """The class of the attack, which is that of its options."""
        return self.options
