"""What is said of a defense beside its code, and what a client can give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from shadow_defense.defenses.places import Place, TensorPlace
from shadow_defense.errors import ConfigError
from shadow_defense.registry import Entry
from shadow_defense.validation import validated

if TYPE_CHECKING:
    from torch import nn

    from shadow_defense.data.dataset import ImageSet, Normalisation
    from shadow_defense.defenses.base import Defense
    from shadow_defense.generators.interface import Generator


@dataclass(frozen=True)
class Site:
    """What a site keeps beyond a run: a folder of its own, and the seed of what is drawn once for all runs."""

    folder: Path
    seed: int


@dataclass(frozen=True)
class Resources:
    """What a client can give its defense.

    Attributes:
        generator: the pre-trained shadow generator; None where no arm of the run asked for one.
        public: public images with labels, for defenses that need others than the client's own; may be empty.
        classes: how many there are.
        seed: the run's seed; the client's name makes the draws its own.
        site: None where runs leave nothing behind, as in one process.
    """

    generator: Generator | None
    normalisation: Normalisation
    public: ImageSet
    classes: int
    client: str
    seed: int
    site: Site | None = None

    def seed_of(self, defense: str) -> int:
        """The seed of this client's draws for a defense."""
        from shadow_defense.seeds import seed_for

        return seed_for(self.seed, defense, self.client)


Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class DefenseKind(Entry, Generic[Settings]):
    """A defense by name: its settings, how a client gets it, and what other code asks of it.

    What is left at its default is the careful answer: nothing is known to be safe.

    Attributes:
        presets: values that differ from the settings' defaults, by the preset's name; ``paper`` is always there.
        build: from settings and what a client has to the client's defense.
        acts_on: where it can act; a defense with a setting ``place`` acts at that one.
        needs_generator: it cannot be built without the shadow generator.
        adapt_model: for a defense that changes the task model, for every client and for the server: from its
            settings, the agreed model and a seed to the model that is trained in its place.
        goes_before: for a defense that maps the images before the model, for every client and for the server: from its
            settings, the public images and the normalisation to the map, or None.
        draws_in_model: the changed model is random: each simulation of a client draws anew.
        reads: what it reads beside the tensors that it is given. images: the client's; model: the model and public
            images at most; nothing. What is differentially private stays so behind one that reads no images.
        private_at: where it makes what passes differentially private.
        computes_anew: with which settings it computes gradients from the batch, in place of those that it is given.
        image_by_image: a protected image depends on no other of its batch.
        mixes_labels: after it labels are probabilities of classes.
        needs_classes: it needs labels that are classes.
        knows_images: it keeps what it finds about an image under its id, and so gets it unchanged in every round.
        draws_once: its protected images never change, and all that leaves is computed from them: what can be made of
            them bounds every attack.
        searches: it takes hundreds of iterations in every batch, too slow to be simulated thousands of times.
        adds_noise_to_images: an attacker who owns the generator can expect this noise and subtract it.
        nothing_to_fit: why an attack that knows the defense keeps its own matching term, in words.
    """

    options: type[Settings]
    build: Callable[[Settings, Resources], Defense]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"paper": {}})
    acts_on: tuple[Place, ...] = ()
    needs_generator: bool = False
    adapt_model: Callable[[Settings, nn.Module, int], nn.Module] | None = None
    goes_before: Callable[[Settings, ImageSet, Normalisation], nn.Module | None] | None = None
    draws_in_model: bool = False
    reads: Literal["images", "model", "nothing"] = "images"
    private_at: TensorPlace | None = None
    computes_anew: Callable[[object], bool] = lambda settings: False
    image_by_image: bool = False
    mixes_labels: bool = False
    needs_classes: bool = False
    knows_images: bool = False
    draws_once: bool = False
    searches: bool = False
    adds_noise_to_images: bool = False
    nothing_to_fit: str | None = None

    def settings(self, preset: str = "paper", /, **options: Any) -> Settings:
        """A preset's settings with some of them changed; what does not fit raises :class:`ConfigError`."""
        return validated(self.options, {**self.presets[preset], **options}, ConfigError, self.name)

    def places(self, settings: BaseModel) -> tuple[Place, ...]:
        """Where the defense acts with these settings."""
        place = getattr(settings, "place", None)
        return (place,) if place else self.acts_on

    @property
    def protects_nothing(self) -> bool:
        """Whether it acts nowhere."""
        return not self.acts_on and self.adapt_model is None
