"""How each architecture is trained where the settings leave it open.

StyleGAN3's published loop replaces non-finite gradients by numbers; here training stops with an error instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shadow_defense.generators.settings import GeneratorSettings


@dataclass(frozen=True)
class Recipe:
    """The published training of an architecture.

    Attributes:
        generator_rate, discriminator_rate: Adam's learning rates; betas are shared.
        r1_gamma: weight of the gradient penalty for an image size.
        r1_every: steps between penalties.
        half_life: of the weights' average, in images, for a batch size.
        own_penalty_step: the penalty is a step of its own, and Adam is corrected for the steps it does not see
            (rate and log betas times ``r1_every / (r1_every + 1)``); otherwise it is added to the loss.
        fading_blur: all that the discriminator sees is blurred at the start (configuration R).
        channels_last: how weights lie in memory: a processor's own kernels of few channels are a quarter faster so.
    """

    generator_rate: float
    discriminator_rate: float
    betas: tuple[float, float]
    r1_gamma: Callable[[int], float]
    r1_every: int
    half_life: Callable[[int], float]
    own_penalty_step: bool
    fading_blur: bool = False
    channels_last: bool = False


DCGAN_RECIPE = Recipe(
    generator_rate=2e-4,
    discriminator_rate=2e-4,
    betas=(0.5, 0.99),
    r1_gamma=lambda size: 0.1,
    r1_every=8,
    half_life=lambda batch: 500.0,
    own_penalty_step=False,
    channels_last=True,
)


def stylegan3_recipe(*, fading_blur: bool) -> Recipe:
    """The published training (docs/generators.md); R1's weight is 0.5 at 128 px, times four for each doubling."""
    return Recipe(
        generator_rate=2.5e-3,
        discriminator_rate=2e-3,
        betas=(0.0, 0.99),
        r1_gamma=lambda size: 0.5 * (size / 128) ** 2,
        r1_every=16,
        half_life=lambda batch: batch * 10_000 / 32,
        own_penalty_step=True,
        fading_blur=fading_blur,
    )


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe with the user's changes, for one image size: plain values.

    Attributes:
        discriminator_betas: corrected where the penalty is a step of its own.
    """

    generator_rate: float
    discriminator_rate: float
    generator_betas: tuple[float, float]
    discriminator_betas: tuple[float, float]
    r1_gamma: float
    r1_every: int
    half_life: float
    own_penalty_step: bool
    fading_blur: bool


def plan_training(recipe: Recipe, settings: GeneratorSettings, image_size: int) -> TrainingPlan:
    """The recipe's values wherever the settings are null.

    >>> plan = plan_training(stylegan3_recipe(fading_blur=False), GeneratorSettings(r1_gamma=0.2), 32)
    >>> plan.r1_gamma, round(plan.discriminator_rate, 6)
    (0.2, 0.001882)
    """
    r1_every = settings.r1_every or recipe.r1_every
    r1_gamma = recipe.r1_gamma(image_size) if settings.r1_gamma is None else settings.r1_gamma
    rate = settings.discriminator_learning_rate or settings.learning_rate or recipe.discriminator_rate
    correction = r1_every / (r1_every + 1) if recipe.own_penalty_step and r1_gamma > 0 else 1.0
    first, second = recipe.betas
    return TrainingPlan(
        generator_rate=settings.learning_rate or recipe.generator_rate,
        discriminator_rate=rate * correction,
        generator_betas=recipe.betas,
        discriminator_betas=(first**correction, second**correction),
        r1_gamma=r1_gamma,
        r1_every=r1_every,
        half_life=settings.average_half_life or recipe.half_life(settings.batch_size),
        own_penalty_step=recipe.own_penalty_step and r1_gamma > 0,
        # A generator that has been trained needs no protection from the discriminator's first steps.
        fading_blur=recipe.fading_blur and settings.begin_from is None,
    )
