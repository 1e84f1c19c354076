"""The published noise of steps 2 to 9, and what is made of it by who runs the same guard on public images."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from protecting.material import SEED, Material
from shadow_defense.attacks.removers.learned import pairs_found, train_remover
from shadow_defense.attacks.removers.suite import breaks_unknown_noise
from shadow_defense.attacks.removers.unknown import AsGiven
from shadow_defense.data.dataset import ImageSet
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.noise import uniform_noise
from shadow_defense.shadow.settings import shadow_preset

AT_ONCE = 8
LATENT_ITERATIONS = 50
"""Of step 2, in place of 500: it changes what the generator cannot draw, hardly where noise goes."""


class Pixels:
    """Noise of strength 1 for the audited images and for the attacker's public ones, each from a guard of its own.

    The noise of step 9 grows with the strength and is otherwise the same, so one run of the guard serves all rows.
    """

    def __init__(self, material: Material, audited: int) -> None:
        self.material, self.audited = material, audited
        self._broken: dict[int, bool] = {}

    def broken(self, steps: int) -> bool:
        """Whether a remover of so many steps breaks the planted break that is its own."""
        if steps not in self._broken:
            self._broken[steps] = breaks_unknown_noise(self.material.knowledge, seed=SEED, steps=steps)
        return self._broken[steps]

    @cached_property
    def noise(self) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "m c h w"]]:
        """Of the audited images, and of the public ones."""
        given = self.material
        audited = given.private.subset(range(self.audited))
        return noise_of_guard(given, audited, SEED + 1), noise_of_guard(given, given.public, SEED + 2)

    def protected(self, strength: float, uniform: bool) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "m c h w"]]:
        """The audited images and the public ones under noise of this strength, or under uniform noise of its energy."""
        found = []
        for name, noise, images in zip(
            ("private", "public"), self.noise, (self.material.gallery[: self.audited], self.material.pool), strict=True
        ):
            placed = uniform_noise(noise, named_generator(SEED, "uniform", name)) if uniform else noise
            found.append(images + strength * placed)
        return found[0], found[1]

    def removed(
        self,
        protected: Float[Tensor, "n c h w"],
        public: Float[Tensor, "m c h w"],
        labels: Int64[Tensor, " n"],
        steps: int,
    ) -> Float[Tensor, "n c h w"]:
        """What the learned remover makes of the audited images, trained on the public pairs."""
        pairs = pairs_found(public, self.material.pool, self.material.public.labels)
        remover = train_remover(AsGiven(), pairs, self.material.classes, seed=SEED, steps=steps)
        return remover.remove(protected, labels).estimates


def noise_of_guard(material: Material, images: ImageSet, seed: int) -> Float[Tensor, "n c h w"]:
    """What a guard of its own adds to each of ``images`` in [0, 1] at strength 1, beside a model of the public ones."""
    found, normalisation = material.classifier(), material.classifier().normalisation
    guard = ShadowGuard(
        material.decoys.generator,
        shadow_preset("paper", strength=1.0, schedule="constant", latent_iterations=LATENT_ITERATIONS),
        mean=normalisation.mean,
        std=normalisation.std,
        seed=seed,
    )
    inputs = normalisation.apply(images.unit_images())
    guard.encode(inputs, images.sample_ids)
    parts = []
    for chosen in torch.arange(len(images)).split(AT_ONCE):
        noisy = guard.protect(
            inputs[chosen],
            images.labels[chosen],
            [images.sample_ids[place] for place in chosen.tolist()],
            model=found.model,
            global_model=found.model,
            loss_fn=F.cross_entropy,
            round=0,
            rounds=20,
        )
        parts.append(normalisation.invert(noisy) - normalisation.invert(inputs[chosen]))
    return torch.cat(parts)
