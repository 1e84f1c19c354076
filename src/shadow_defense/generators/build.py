"""The registry of generators, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError, RunError, shown
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.kind import Architecture
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.registry import Registry
from shadow_defense.seeds import seed_for

GENERATORS: Registry[Architecture] = Registry("generator", Architecture, "shadow_defense.generators", GeneratorError)


def architecture(name: str) -> Architecture:
    """The registered architecture; an unknown name raises :class:`GeneratorError` listing the valid ones."""
    return GENERATORS.find(name)


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
    kind.options_of(settings.options, GeneratorError, "generator.options")
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
    architecture(name).begin(generator, settings)
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
    # Never one to import: a file says nothing about which code is run.
    if name not in GENERATORS:
        raise GeneratorError(
            f"{shown(path)} was made by the generator '{shown(name)}', which is not known here: install its package, "
            "or choose it as generator.name first"
        )
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
