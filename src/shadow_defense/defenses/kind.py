"""What the registry says of a defense, and what a client can give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from torch import nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Defense, Place
from shadow_defense.errors import ConfigError
from shadow_defense.generators.interface import Generator
from shadow_defense.seeds import seed_for
from shadow_defense.validation import validated


@dataclass(frozen=True)
class Resources:
    """What a client can give its defense.

    Attributes:
        generator: the pre-trained shadow generator; None where no arm of the run asked for one.
        public: public images with labels, for defenses that need others than the client's own; may be empty.
        classes: how many there are.
        seed: the run's seed; the client's name makes the draws its own.
    """

    generator: Generator | None
    normalisation: Normalisation
    public: ImageSet
    classes: int
    client: str
    seed: int

    def seed_of(self, defense: str) -> int:
        """The seed of this client's draws for a defense."""
        return seed_for(self.seed, defense, self.client)


def presets_of(
    where: str, model: type[BaseModel], presets: Mapping[str, Mapping[str, Any]]
) -> Callable[..., BaseModel]:
    """A function from a preset's name and changes to settings of ``model``, for errors of the defense ``where``."""

    def settings(preset: str, **options: Any) -> BaseModel:
        return validated(model, {**presets[preset], **options}, ConfigError, where)

    return settings


@dataclass(frozen=True)
class Kind:
    """A registered defense: what it is, its presets, its settings from a preset and options, and its builder.

    Attributes:
        acts_on: where it can act; a defense with a setting ``place`` acts at that one.
        adapt_model: for a defense that changes the task model, for every client and for the server: from its
            settings, the agreed model and a seed to the model that is trained in its place.
    """

    summary: str
    presets: tuple[str, ...]
    settings: Callable[..., BaseModel]
    build: Callable[[BaseModel, Resources], Defense]
    acts_on: tuple[Place, ...] = ()
    needs_generator: bool = False
    adapt_model: Callable[[BaseModel, nn.Module, int], nn.Module] | None = None

    def places(self, settings: BaseModel) -> tuple[Place, ...]:
        """Where the defense acts with these settings."""
        place = getattr(settings, "place", None)
        return (place,) if place else self.acts_on
