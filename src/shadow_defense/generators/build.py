"""Generators from their settings, and their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError, RunError, shown
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.kind import Architecture
from shadow_defense.generators.registry import GENERATORS, architecture
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.seeds import seed_for


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
        if settings.begin_from_discriminator is None:
            discriminator = kind.discriminator(generator)
        else:
            discriminator = begun_discriminator(kind, generator, settings.begin_from_discriminator)
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


def begun_discriminator(kind: Architecture, generator: Generator, path: Path) -> nn.Module:
    """The discriminator of a file, for a generator of its kind. Raises :class:`GeneratorError` as for a generator."""
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != "discriminator":
            raise GeneratorError(f"{path} holds no discriminator: give one that `import-snapshot` wrote")
        options = {name: metadata[name] for name in kind.discriminator_options if name in metadata}
        _check_fit(lambda: kind.discriminator(generator, **options), tensors)
        discriminator = kind.discriminator(generator, **options)
        discriminator.load_state_dict(tensors)
    except (RunError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GeneratorError(
            f"{path} does not fit the generator: {reason}; give the discriminator of the same snapshot"
        ) from error
    return discriminator


def save_discriminator(path: Path, discriminator: nn.Module, name: str) -> None:
    """Write a discriminator's weights and what it chose of its architecture, for ``begin_from_discriminator``."""
    options = {option: getattr(discriminator, option) for option in architecture(name).discriminator_options}
    write_tensors(path, discriminator.state_dict(), {"kind": "discriminator", **options})


MOST_ARGUMENT = 2**20
"""Of a number in a file that says how large its network is; StyleGAN3's channel_base is the largest, at 2^16."""


def _check_fit(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless the network that ``build`` makes has these tensors; nothing of its size is made."""
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in build().state_dict().items()}
    for name in expected.keys() | tensors.keys():
        if name not in tensors or name not in expected or tensors[name].shape != expected[name]:
            raise ValueError(f"tensor '{name}' is missing, unexpected or of another shape")
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise ValueError(f"tensor '{name}' holds NaN or infinity")


def _checked_arguments(kind: Architecture, given: object, parts: int) -> dict[str, Any]:
    """What a file says of its network; ``ValueError`` for other names, and for all but texts and small numbers."""
    if not isinstance(given, dict) or not given.keys() <= set(kind.arguments):
        raise ValueError(f"its arguments are not {', '.join(kind.arguments)}")
    for name, value in given.items():
        # Each layer of a mapping network has tensors of its own: that many are there, or the claim is false.
        most = parts if name == "mapping_layers" else MOST_ARGUMENT
        if not isinstance(value, str) and not (isinstance(value, int | float) and 0 <= value <= most):
            raise ValueError(f"its {name} is said to be {shown(value)}: expected 0 to {most}")
    return given


def save_generator(path: Path, generator: Generator, name: str, training: dict[str, Any]) -> None:
    """Write weights and the arguments that rebuild the network; ``training`` says how they came about."""
    arguments = {argument: getattr(generator, argument) for argument in architecture(name).arguments}
    metadata = {"kind": "generator", "name": name, "arguments": arguments, "training": training}
    write_tensors(path, generator.state_dict(), metadata)


def load_generator(path: str | Path) -> Generator:
    """Read a generator written by :func:`save_generator`, in eval mode.

    Raises:
        GeneratorError: when the file is unreadable, is no generator, or its tensors don't fit its architecture.
    """
    return read_generator(Path(path))[1]


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
            kind = architecture(name)
            arguments = _checked_arguments(kind, metadata.get("arguments"), len(tensors))
            _check_fit(lambda: kind.generator()(**arguments), tensors)
            generator = kind.generator()(**arguments)
        generator.load_state_dict(tensors)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GeneratorError(
            f"{path} does not fit its architecture: {reason}; pre-train the generator again"
        ) from error
    return name, generator.eval()
