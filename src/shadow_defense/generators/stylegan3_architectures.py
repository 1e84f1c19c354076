"""StyleGAN3 by name: configurations T and R, full width and thinner ones for CPUs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.kind import Architecture
from shadow_defense.generators.recipe import stylegan3_recipe
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.stylegan3.schedule import SIZES
from shadow_defense.registry import NoOptions

# StyleGAN3 is imported where one is built: with what it needs that takes longer than all the rest of a client.
if TYPE_CHECKING:
    from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator


def _stylegan3_generator() -> type[Generator]:
    from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator

    return StyleGAN3Generator


def _stylegan3_arguments(settings: GeneratorSettings, *, base: int, most: int, rotation: bool) -> dict[str, Any]:
    if settings.width is not None:
        raise GeneratorError(
            f"generator.width={settings.width} was given for '{settings.name}', whose width is part of its name: "
            f"leave it out, or choose among {', '.join(each.name for each in STYLEGAN3)}"
        )
    from shadow_defense.generators.stylegan3.generator import training_magnitude_decay

    factor = ROTATION_WIDENS if rotation else 1
    return {
        "z_dim": settings.z_dim or 512,
        "channel_base": base * factor,
        "channel_max": most * factor,
        "kernel": 1 if rotation else 3,
        "radial": rotation,
        "magnitude_ema_beta": training_magnitude_decay(settings.batch_size),
    }


def _begin(generator: StyleGAN3Generator, settings: GeneratorSettings) -> None:
    from shadow_defense.generators.stylegan3.generator import training_magnitude_decay

    generator.set_magnitude_decay(training_magnitude_decay(settings.batch_size))


def _stylegan3_discriminator(generator: StyleGAN3Generator, **options: Any) -> nn.Module:
    from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator

    factor = ROTATION_WIDENS if generator.kernel == 1 else 1
    return StyleGAN3Discriminator(
        img_resolution=generator.image_size,
        img_channels=generator.channels,
        channel_base=generator.channel_base // factor,
        channel_max=generator.channel_max // factor,
        **options,
    )


ROTATION_WIDENS = 2
"""Configuration R's generator has twice the channels of T's; the discriminator is the same."""

DEVIATION_OPTIONS = ("deviation_group", "deviation_channels")
"""Of the discriminator, which official trainings can choose (``mbstd_group_size``)."""

STYLEGAN3_ARGUMENTS = (
    "image_size", "channels", "z_dim", "w_dim", "c_dim", "channel_base", "channel_max", "kernel", "radial",
    "mapping_layers", "magnitude_ema_beta",
)  # fmt: skip


def _stylegan3(name: str, summary: str, base: int, most: int, *, rotation: bool) -> Architecture:
    return Architecture(
        name,
        summary,
        NoOptions,
        SIZES,
        _stylegan3_generator,
        STYLEGAN3_ARGUMENTS,
        partial(_stylegan3_arguments, base=base, most=most, rotation=rotation),
        _stylegan3_discriminator,
        stylegan3_recipe(fading_blur=rotation),
        _begin,
        discriminator_options=DEVIATION_OPTIONS,
    )


STYLEGAN3 = (
    _stylegan3("stylegan3-t", "StyleGAN3, translation, full width: the paper's", 32768, 512, rotation=False),
    _stylegan3("stylegan3-r", "StyleGAN3, rotation, full width", 32768, 512, rotation=True),
    _stylegan3("stylegan3-t-medium", "translation for CPUs, a quarter of the width", 8192, 256, rotation=False),
    _stylegan3("stylegan3-t-small", "translation for CPUs, an eighth of the width", 4096, 128, rotation=False),
    _stylegan3("stylegan3-t-tiny", "translation for CPUs, a sixteenth of the width", 2048, 64, rotation=False),
    _stylegan3("stylegan3-r-small", "rotation for CPUs, an eighth of the width", 4096, 128, rotation=True),
)
