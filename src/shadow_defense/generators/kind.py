"""What is said of a generator's architecture beside its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shadow_defense.generators.recipe import Recipe
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.registry import Entry

if TYPE_CHECKING:
    from torch import nn

    from shadow_defense.generators.interface import Generator


@dataclass(frozen=True)
class Architecture(Entry):
    """A generator, the discriminator it is trained against, and how.

    Attributes:
        sizes: the sides in pixels in which it comes.
        generator: gives the class; ``arguments`` are those of its constructor, and attributes of the network.
        chosen: constructor arguments from the settings, beside image_size and channels.
        discriminator: an untrained one that fits a generator.
        begin: readies a generator of a file for training by the settings.
        discriminator_options: what may differ between discriminators of the same generator, attributes of them.
    """

    sizes: tuple[int, ...]
    generator: Callable[[], type[Generator]]
    arguments: tuple[str, ...]
    chosen: Callable[[GeneratorSettings], dict[str, Any]]
    discriminator: Callable[..., nn.Module]
    recipe: Recipe
    begin: Callable[[Any, GeneratorSettings], None] = lambda generator, settings: None
    discriminator_options: tuple[str, ...] = ()
