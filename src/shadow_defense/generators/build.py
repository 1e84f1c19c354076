"""The registry of generators, and their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shadow_defense.errors import GeneratorError, RunError, unknown_name
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.generators.dcgan import SIZES, DCGANDiscriminator, DCGANGenerator
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.recipe import DCGAN_RECIPE, Recipe, stylegan3_recipe
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator
from shadow_defense.generators.stylegan3.generator import SIZES as STYLEGAN3_SIZES
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator, training_magnitude_decay
from shadow_defense.seeds import seed_for


@dataclass(frozen=True)
class Architecture:
    """A generator, the discriminator it is trained against, and how.

    Attributes:
        summary: one line for lists.
        sizes: the sides in pixels in which it comes.
        generator: the constructor, for files; ``arguments`` are its keyword arguments and the network's attributes.
        networks: a fresh generator and discriminator from the settings, a side in pixels and a number of channels.
    """

    summary: str
    sizes: tuple[int, ...]
    generator: Callable[..., Generator]
    arguments: tuple[str, ...]
    networks: Callable[[GeneratorSettings, int, int], tuple[Generator, nn.Module]]
    recipe: Recipe


def _dcgan(settings: GeneratorSettings, image_size: int, channels: int) -> tuple[Generator, nn.Module]:
    shape = {"image_size": image_size, "channels": channels, "width": settings.width or 32}
    return DCGANGenerator(z_dim=settings.z_dim or 256, **shape), DCGANDiscriminator(**shape)


def _stylegan3(
    settings: GeneratorSettings, image_size: int, channels: int, *, base: int, most: int, rotation: bool
) -> tuple[Generator, nn.Module]:
    if settings.width is not None:
        raise GeneratorError(
            f"generator.width={settings.width} was given for '{settings.name}', whose width is part of its name: "
            f"leave it out, or choose among {', '.join(name for name in GENERATORS if name.startswith('stylegan3'))}"
        )
    factor = 2 if rotation else 1
    generator = StyleGAN3Generator(
        image_size,
        channels,
        z_dim=settings.z_dim or 512,
        channel_base=base * factor,
        channel_max=most * factor,
        kernel=1 if rotation else 3,
        radial=rotation,
        magnitude_ema_beta=training_magnitude_decay(settings.batch_size),
    )
    discriminator = StyleGAN3Discriminator(
        img_resolution=image_size, img_channels=channels, channel_base=base, channel_max=most
    )
    return generator, discriminator


STYLEGAN3_ARGUMENTS = (
    "image_size", "channels", "z_dim", "w_dim", "c_dim", "channel_base", "channel_max", "kernel", "radial",
    "mapping_layers", "magnitude_ema_beta",
)  # fmt: skip


def _stylegan3_architecture(summary: str, base: int, most: int, rotation: bool) -> Architecture:
    return Architecture(
        summary,
        STYLEGAN3_SIZES,
        StyleGAN3Generator,
        STYLEGAN3_ARGUMENTS,
        partial(_stylegan3, base=base, most=most, rotation=rotation),
        stylegan3_recipe(fading_blur=rotation),
    )


GENERATORS: dict[str, Architecture] = {
    "dcgan": Architecture(
        "the article's small shadow: transposed convolutions",
        SIZES,
        DCGANGenerator,
        ("image_size", "channels", "z_dim", "width"),
        _dcgan,
        DCGAN_RECIPE,
    ),
    "stylegan3-t": _stylegan3_architecture("StyleGAN3, translation, full width: the paper's", 32768, 512, False),
    "stylegan3-r": _stylegan3_architecture("StyleGAN3, rotation, full width", 32768, 512, True),
    "stylegan3-t-medium": _stylegan3_architecture("the same for CPUs, a quarter of the width", 8192, 256, False),
    "stylegan3-t-small": _stylegan3_architecture("the same for CPUs, an eighth of the width", 4096, 128, False),
    "stylegan3-t-tiny": _stylegan3_architecture("the same for CPUs, a sixteenth of the width", 2048, 64, False),
    "stylegan3-r-small": _stylegan3_architecture("rotation for CPUs, an eighth of the width", 4096, 128, True),
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
    """A fresh generator and discriminator, repeatable from ``seed``; the global random state is left alone."""
    kind = architecture(settings.name)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also seed the accelerators, whose state is the caller's.
        torch.default_generator.manual_seed(seed_for(seed, "generator"))
        generator, discriminator = kind.networks(settings, image_size, channels)
    return generator.eval(), discriminator


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
    try:
        tensors, metadata = read_tensors(path)
    except RunError as error:
        raise GeneratorError(f"{error}") from error
    if metadata.get("kind") != "generator":
        raise GeneratorError(f"{path} holds no generator: give a file that `shadow-defense pretrain` wrote")
    kind = architecture(str(metadata.get("name")))
    try:
        generator = kind.generator(**metadata["arguments"])
        generator.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GeneratorError(
            f"{path} does not fit its architecture: {reason}; pre-train the generator again"
        ) from error
    return generator.eval()
