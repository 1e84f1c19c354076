"""The registry of generators, and their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError, RunError, unknown_name
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.generators.dcgan import SIZES, DCGANDiscriminator, DCGANGenerator
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.recipe import DCGAN_RECIPE, Recipe, stylegan3_recipe
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.stylegan3.schedule import SIZES as STYLEGAN3_SIZES
from shadow_defense.seeds import seed_for

# StyleGAN3 is imported where one is built: with what it needs that takes longer than all the rest of a client.
if TYPE_CHECKING:
    from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator


@dataclass(frozen=True)
class Architecture:
    """A generator, the discriminator it is trained against, and how.

    Attributes:
        summary: one line for lists.
        sizes: the sides in pixels in which it comes.
        generator: gives the class; ``arguments`` are those of its constructor, and attributes of the network.
        chosen: constructor arguments from the settings, beside image_size and channels.
        discriminator: an untrained one that fits a generator.
    """

    summary: str
    sizes: tuple[int, ...]
    generator: Callable[[], type[Generator]]
    arguments: tuple[str, ...]
    chosen: Callable[[GeneratorSettings], dict[str, Any]]
    discriminator: Callable[[Any], nn.Module]
    recipe: Recipe


def _dcgan() -> type[Generator]:
    return DCGANGenerator


def _dcgan_arguments(settings: GeneratorSettings) -> dict[str, Any]:
    return {"z_dim": settings.z_dim or 256, "width": settings.width or 32}


def _dcgan_discriminator(generator: DCGANGenerator) -> nn.Module:
    return DCGANDiscriminator(generator.image_size, generator.channels, generator.width)


def _stylegan3_generator() -> type[Generator]:
    from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator

    return StyleGAN3Generator


def _stylegan3_arguments(settings: GeneratorSettings, *, base: int, most: int, rotation: bool) -> dict[str, Any]:
    if settings.width is not None:
        raise GeneratorError(
            f"generator.width={settings.width} was given for '{settings.name}', whose width is part of its name: "
            f"leave it out, or choose among {', '.join(name for name in GENERATORS if name.startswith('stylegan3'))}"
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


def _stylegan3_discriminator(generator: StyleGAN3Generator) -> nn.Module:
    from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator

    factor = ROTATION_WIDENS if generator.kernel == 1 else 1
    return StyleGAN3Discriminator(
        img_resolution=generator.image_size,
        img_channels=generator.channels,
        channel_base=generator.channel_base // factor,
        channel_max=generator.channel_max // factor,
    )


ROTATION_WIDENS = 2
"""Configuration R's generator has twice the channels of T's; the discriminator is the same."""

STYLEGAN3_ARGUMENTS = (
    "image_size", "channels", "z_dim", "w_dim", "c_dim", "channel_base", "channel_max", "kernel", "radial",
    "mapping_layers", "magnitude_ema_beta",
)  # fmt: skip


def _stylegan3(summary: str, base: int, most: int, *, rotation: bool) -> Architecture:
    return Architecture(
        summary,
        STYLEGAN3_SIZES,
        _stylegan3_generator,
        STYLEGAN3_ARGUMENTS,
        partial(_stylegan3_arguments, base=base, most=most, rotation=rotation),
        _stylegan3_discriminator,
        stylegan3_recipe(fading_blur=rotation),
    )


GENERATORS: dict[str, Architecture] = {
    "dcgan": Architecture(
        "the article's small shadow: transposed convolutions",
        SIZES,
        _dcgan,
        ("image_size", "channels", "z_dim", "width"),
        _dcgan_arguments,
        _dcgan_discriminator,
        DCGAN_RECIPE,
    ),
    "stylegan3-t": _stylegan3("StyleGAN3, translation, full width: the paper's", 32768, 512, rotation=False),
    "stylegan3-r": _stylegan3("StyleGAN3, rotation, full width", 32768, 512, rotation=True),
    "stylegan3-t-medium": _stylegan3("translation for CPUs, a quarter of the width", 8192, 256, rotation=False),
    "stylegan3-t-small": _stylegan3("translation for CPUs, an eighth of the width", 4096, 128, rotation=False),
    "stylegan3-t-tiny": _stylegan3("translation for CPUs, a sixteenth of the width", 2048, 64, rotation=False),
    "stylegan3-r-small": _stylegan3("rotation for CPUs, an eighth of the width", 4096, 128, rotation=True),
}


def architecture(name: str) -> Architecture:
    """The registered architecture; an unknown name raises :class:`GeneratorError` listing the valid ones."""
    if name not in GENERATORS:
        raise GeneratorError(unknown_name("generator", name, GENERATORS))
    return GENERATORS[name]


def covering_size(name: str, image_size: int) -> int:
    """The least side in which the architecture comes that covers images of ``image_size`` pixels.

    >>> covering_size("dcgan", 28)
    32
    """
    sizes = architecture(name).sizes
    for size in sorted(sizes):
        if size >= image_size:
            return size
    raise GeneratorError(
        f"generator '{name}' comes in {', '.join(map(str, sizes))} px but the images have {image_size} px: "
        "choose another generator or a smaller data.image_size"
    )


def build_networks(
    settings: GeneratorSettings, *, image_size: int, channels: int, seed: int
) -> tuple[Generator, nn.Module]:
    """A fresh generator and discriminator, repeatable from ``seed``; the global random state is left alone.

    With ``settings.begin_from`` the generator is the one of that file, and with ``begin_from_discriminator`` the
    discriminator has that file's weights.

    Raises:
        GeneratorError: when a file's network does not fit the settings, the size or the channels.
    """
    kind = architecture(settings.name)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also seed the accelerators, whose state is the caller's.
        torch.default_generator.manual_seed(seed_for(seed, "generator"))
        if settings.begin_from is None:
            generator = kind.generator()(image_size=image_size, channels=channels, **kind.chosen(settings))
        else:
            generator = _begun(settings, settings.begin_from, image_size, channels)
        discriminator = kind.discriminator(generator)
    if settings.begin_from_discriminator is not None:
        _load_discriminator(discriminator, settings.begin_from_discriminator)
    return generator.eval(), discriminator


def _begun(settings: GeneratorSettings, path: Path, image_size: int, channels: int) -> Generator:
    name, generator = read_generator(path)
    found = (name, generator.image_size, generator.channels)
    if found != (settings.name, image_size, channels):
        raise GeneratorError(
            f"{path} holds a {name} of {generator.image_size} px and {generator.channels} channels but a "
            f"{settings.name} of {image_size} px and {channels} channels was asked for: set generator.name and "
            "image_size to the file's, and give images of as many channels"
        )
    if getattr(generator, "c_dim", 0):
        raise GeneratorError(
            f"{path} is conditional on {generator.c_dim} classes and can be used but not trained on: begin from an "
            "unconditional one"
        )
    if settings.z_dim is not None or settings.width is not None:
        raise GeneratorError("generator.z_dim and width are the file's where begin_from is given: leave them out")
    from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator, training_magnitude_decay

    if isinstance(generator, StyleGAN3Generator):
        generator.set_magnitude_decay(training_magnitude_decay(settings.batch_size))
    return generator


def _load_discriminator(discriminator: nn.Module, path: Path) -> None:
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != "discriminator":
            raise GeneratorError(f"{path} holds no discriminator: give one that `import-snapshot` wrote")
        discriminator.load_state_dict(tensors)
    except (RunError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GeneratorError(
            f"{path} does not fit the generator: {reason}; give the discriminator of the same snapshot"
        ) from error


def save_discriminator(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a discriminator's weights, for ``generator.begin_from_discriminator``."""
    write_tensors(path, dict(tensors), {"kind": "discriminator"})


def save_generator(path: Path, generator: Generator, name: str, training: dict[str, Any]) -> None:
    """Write weights and the arguments that rebuild the network; ``training`` says how they came about."""
    arguments = {argument: getattr(generator, argument) for argument in architecture(name).arguments}
    metadata = {"kind": "generator", "name": name, "arguments": arguments, "training": training}
    write_tensors(path, generator.state_dict(), metadata)


def load_generator(path: Path) -> Generator:
    """Read a generator written by :func:`save_generator`, in eval mode.

    Raises:
        GeneratorError: when the file is unreadable, is no generator, or its tensors don't fit its architecture.
    """
    return read_generator(path)[1]


def read_generator(path: Path) -> tuple[str, Generator]:
    """The registered name of a saved generator's architecture, and the generator as :func:`load_generator` has it."""
    try:
        tensors, metadata = read_tensors(path)
    except RunError as error:
        raise GeneratorError(f"{error}") from error
    if metadata.get("kind") != "generator":
        raise GeneratorError(f"{path} holds no generator: give a file that `shadow-defense pretrain` wrote")
    name = str(metadata.get("name"))
    try:
        # The constructors draw weights, which the file's replace: the caller's random state is left alone.
        with torch.random.fork_rng(devices=[]):
            generator = architecture(name).generator()(**metadata["arguments"])
        generator.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GeneratorError(
            f"{path} does not fit its architecture: {reason}; pre-train the generator again"
        ) from error
    return name, generator.eval()
