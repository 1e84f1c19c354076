"""The article's small shadow: a DCGAN-shaped generator and a strided-convolution discriminator, 16 to 256 px."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.interface import Generator, LatentSpace
from shadow_defense.generators.kind import Architecture
from shadow_defense.generators.recipe import DCGAN_RECIPE
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.registry import NoOptions

SIZES = (16, 32, 64, 128, 256)
"""The article goes to 64 px; the larger sides are deeper stacks of the same blocks."""

LEAST_FEATURES = 8

MODULES_A_BLOCK = 3
"""Transposed convolution, batch norm and ReLU; the last block has tanh in place of the other two."""


def _check(image_size: int, channels: int) -> None:
    if image_size not in SIZES:
        raise GeneratorError(
            f"a DCGAN of {image_size} px was asked for: expected {', '.join(map(str, SIZES))}; set generator.image_size"
        )
    if channels not in (1, 3):
        raise GeneratorError(f"a DCGAN of {channels} channels was asked for: expected 1 (grey) or 3 (colour)")


def _initialise(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02), as DCGAN's paper (Radford et al. 2016, section 3) asks."""
    # Shapes alone have nothing to draw, and torch would import its compiler for it: longer than a generator loads.
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not module.weight.is_meta:
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DCGANGenerator(Generator):
    """z -> 4 x 4 x 8h -> transposed convolutions that halve the width and double the side -> tanh.

    Batch norm between them. Outside GAN training it is used in eval mode, so that the image of a code does not
    depend on the other codes of its batch.
    """

    def __init__(self, image_size: int = 32, channels: int = 1, z_dim: int = 256, width: int = 32) -> None:
        super().__init__()
        _check(image_size, channels)
        self.image_size, self.channels, self.z_dim, self.width = image_size, channels, z_dim, width
        features = 8 * width
        self.project = nn.Sequential(
            nn.Linear(z_dim, features * 16, bias=False),
            nn.Unflatten(1, (features, 4, 4)),
            nn.BatchNorm2d(features),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        side = 4
        while side * 2 < image_size:
            narrower = max(features // 2, LEAST_FEATURES)
            blocks += [
                nn.ConvTranspose2d(features, narrower, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(narrower),
                nn.ReLU(),
            ]
            side, features = side * 2, narrower
        blocks += [nn.ConvTranspose2d(features, channels, 4, stride=2, padding=1), nn.Tanh()]
        self.synthesis = nn.Sequential(*blocks)
        self.apply(_initialise)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c s s"]:
        return self.synthesis(self.project(z))

    @property
    def feature_layers(self) -> int:
        """A layer is a block of the synthesis network: 0 reads the 4 x 4 projection of the code."""
        return -(-len(self.synthesis) // MODULES_A_BLOCK)

    def features(
        self, codes: Float[Tensor, " n *code"], layer: int, space: LatentSpace = "z"
    ) -> Float[Tensor, "n f h h"]:
        self.check_layer(layer)
        self.check_space(space)
        return self.synthesis[: MODULES_A_BLOCK * layer](self.project(codes))

    def next_features(
        self,
        features: Float[Tensor, "n f h h"],
        codes: Float[Tensor, " n *code"],
        layer: int,
        space: LatentSpace = "z",
    ) -> Float[Tensor, "n g s s"]:
        self.check_layer(layer + 1)
        self.check_space(space)
        return self.synthesis[MODULES_A_BLOCK * layer : MODULES_A_BLOCK * (layer + 1)](features)

    def from_features(
        self,
        features: Float[Tensor, "n f h h"],
        codes: Float[Tensor, " n *code"],
        layer: int,
        space: LatentSpace = "z",
    ) -> Float[Tensor, "n c s s"]:
        self.check_layer(layer)
        self.check_space(space)
        return self.synthesis[MODULES_A_BLOCK * layer :](features)


class DCGANDiscriminator(nn.Module):
    """Convolutions of stride 2 down to 4 x 4, then one linear layer to a logit; no normalisation, for R1's sake."""

    def __init__(self, image_size: int = 32, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        _check(image_size, channels)
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        side, features = image_size // 2, width
        while side > 4:
            wider = min(features * 2, 8 * width)
            blocks += [nn.Conv2d(features, wider, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            side, features = side // 2, wider
        self.features = nn.Sequential(*blocks)
        self.logit = nn.Linear(features * 16, 1)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "n c s s"]) -> Float[Tensor, " n"]:
        """One logit an image: positive means real."""
        return self.logit(self.features(images).flatten(1)).squeeze(1)


def _dcgan_arguments(settings: GeneratorSettings) -> dict[str, Any]:
    return {"z_dim": settings.z_dim or 256, "width": settings.width or 32}


def _dcgan_discriminator(generator: DCGANGenerator) -> nn.Module:
    return DCGANDiscriminator(generator.image_size, generator.channels, generator.width)


DCGAN = Architecture(
    "dcgan",
    "the article's small shadow: transposed convolutions",
    NoOptions,
    SIZES,
    lambda: DCGANGenerator,
    ("image_size", "channels", "z_dim", "width"),
    _dcgan_arguments,
    _dcgan_discriminator,
    DCGAN_RECIPE,
)
