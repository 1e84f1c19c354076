"""The registry of generators, and their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shadow_defense.errors import GeneratorError, RunError, unknown_name
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.generators.dcgan import SIZES, DCGANDiscriminator, DCGANGenerator
from shadow_defense.generators.interface import Generator
from shadow_defense.seeds import seed_for


@dataclass(frozen=True)
class Architecture:
    """A generator, the discriminator it is trained against, the sides it comes in, and its constructor's names."""

    generator: Callable[..., Generator]
    discriminator: Callable[..., nn.Module]
    sizes: tuple[int, ...]
    arguments: tuple[str, ...]


GENERATORS: dict[str, Architecture] = {
    "dcgan": Architecture(
        DCGANGenerator, DCGANDiscriminator, SIZES, arguments=("image_size", "channels", "z_dim", "width")
    ),
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
    name: str, *, image_size: int, channels: int, z_dim: int, width: int, seed: int
) -> tuple[Generator, nn.Module]:
    """A fresh generator and discriminator, repeatable from ``seed``; the global random state is left alone."""
    kind = architecture(name)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also seed the accelerators, whose state is the caller's.
        torch.default_generator.manual_seed(seed_for(seed, "generator"))
        generator = kind.generator(image_size=image_size, channels=channels, z_dim=z_dim, width=width)
        discriminator = kind.discriminator(image_size=image_size, channels=channels, width=width)
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
