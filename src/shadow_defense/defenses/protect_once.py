"""Training on images that were protected once: the same x' in every round, at no cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.data.images import as_bytes
from shadow_defense.defenses.base import Batch, Defense, Place, RoundContext
from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.defenses.protected_pictures import ProtectedPictures
from shadow_defense.errors import DefenseError
from shadow_defense.handed_on import HandedOn
from shadow_defense.progress import Progress
from shadow_defense.protection.before_model import BeforeModel
from shadow_defense.protection.building import build_texture, freeze
from shadow_defense.protection.constants import (
    Constants,
    hash_of,
    kept_constants,
    measure_constants,
    read_or_measured,
)
from shadow_defense.protection.frozen import FrozenProtection
from shadow_defense.protection.settings import TextureSettings
from shadow_defense.protection.texture import Texture
from shadow_defense.shadow.sample_store import pack_samples, unpack_samples
from shadow_defense.threads import threads_of_torch

PUBLIC_SEED = 0
"""Of the classifier that tells a task's directions; as public as its images."""


TEXTURE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "directions": {"texture": "task"},
    "white": {"texture": "white"},
    "covariance": {"texture": "covariance"},
    "decoy": {"texture": "decoy", "floor": 0.15},
}

MOST_MADE = 4
"""Constants that a process has in memory: of all textures on one seed's images."""

_made = HandedOn[Constants](
    "constants-of-textures", MOST_MADE, partial(read_or_measured, hint="give the same command again")
)
"""By what they are measured with: clients and arms share them, and a model is built often."""


def constants_of(settings: TextureSettings, public: ImageSet, progress: Progress | None = None) -> Constants:
    """What the texture is made of, measured once for all strengths, with one thread wherever that is."""
    measured = settings.model_dump_json(include={"texture", "directions"} if settings.spares else set())
    name = measured + hash_of(public.images, public.labels)

    def measure() -> Constants:
        with threads_of_torch(1):
            return measure_constants(
                settings, public.images, public.labels, seed=PUBLIC_SEED, progress=progress or Progress()
            )

    return replace(_made.of(name, measure), strength=settings.strength)


class ProtectOnce(Defense):
    """Every image is drawn once, before the first round, and replaced by its x' for ever (docs/protect.md).

    What a round computes is computed of x' alone: clean images are not looked at after :meth:`prepare`.
    """

    acts_on: ClassVar[frozenset[Place]] = frozenset({"batch"})

    def __init__(self, settings: TextureSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources
        self._images: dict[str, Tensor] = {}
        self._pictures = ProtectedPictures()

    def check_model(self, model: nn.Module) -> None:
        """Raises :class:`DefenseError` where the model lacks the map that images go through at test time."""
        if self.settings.spares and not any(isinstance(each, BeforeModel) for each in model.modules()):
            raise DefenseError(
                f"texture {self.settings.texture} is trained on mapped images, and {type(model).__name__} has no map "
                "before it: train the model that DefenseSettings.whole_model gives"
            )

    def prepare(
        self, images: Float[Tensor, "n c h w"], sample_ids: tuple[str, ...], progress: Progress | None = None
    ) -> None:
        clean = as_bytes(self.resources.normalisation.invert(images))
        # As they lie in the folder that `protect` writes.
        protected = as_bytes(self.frozen(progress).trained_on(clean))
        self._images = dict(zip(sample_ids, protected, strict=True))

    def frozen(self, progress: Progress | None = None) -> FrozenProtection:
        """By which this client's images are protected."""
        resources, site = self.resources, self.resources.site
        secret = resources.seed_of("protect-once") if site is None else site.seed
        return freeze(self.settings, self._constants(progress), resources.public.images, secret)

    def texture(self) -> Texture:
        """By which the images were protected."""
        return build_texture(self.settings, self._constants(), self.resources.public.images)

    def protected(self, sample_ids: Sequence[str]) -> UInt8[Tensor, "n c h w"]:
        """What is trained on in place of these images. Raises :class:`DefenseError` for one that was not prepared."""
        unknown = next((sample for sample in sample_ids if sample not in self._images), None)
        if unknown is not None:
            raise DefenseError(f"image '{unknown}' was not protected before the first round: no update leaves")
        return torch.stack([self._images[sample] for sample in sample_ids])

    def _constants(self, progress: Progress | None = None) -> Constants:
        site, public = self.resources.site, self.resources.public
        measure = partial(constants_of, self.settings, public, progress)
        if site is None:
            return measure()
        return kept_constants(site.folder, self.settings, public.images, public.labels, measure, PUBLIC_SEED)

    def begin_round(self, context: RoundContext) -> None:
        self._pictures.clear()

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        images = self.protected(batch.sample_ids).to(batch.images.device)
        protected = Batch(self.resources.normalisation.apply(images.float() / 255), batch.labels, batch.sample_ids)
        self._pictures.keep(protected, context)
        return protected

    def explanations(self) -> dict[str, Tensor]:
        return self._pictures.explanations()

    def state_dict(self) -> dict[str, Any]:
        return {"images": pack_samples(self._images)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._images = unpack_samples(state["images"])


def before_model(settings: TextureSettings, public: ImageSet, normalisation: Normalisation) -> nn.Module | None:
    """The map of task or features, for every client and for the server; None where nothing goes before the model."""
    if not settings.spares:
        return None
    return BeforeModel(build_texture(settings, constants_of(settings, public), public.images).module(), normalisation)


PROTECT_ONCE = DefenseKind(
    "protect-once",
    "images drawn once and kept, with a bound on what any attack can find (docs/protect.md)",
    TextureSettings,
    ProtectOnce,
    TEXTURE_PRESETS,
    acts_on=("batch",),
    goes_before=before_model,
    image_by_image=True,
    knows_images=True,
    draws_once=True,
    nothing_to_fit="images are protected before training: what is rebuilt is the protected image, which the worst-case "
    "audit hands to the attacker (docs/protect.md)",
)
