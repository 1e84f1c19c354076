"""A small convolutional network: quick to train on a CPU, and the usual victim of gradient inversion."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.models.kind import ModelKind
from shadow_defense.models.normalisation import normalisation_layer
from shadow_defense.models.settings import Activation, ModelSettings, NormalisationKind
from shadow_defense.registry import NoOptions

WIDTHS = (1, 1, 1, 2, 2)
"""Channels of the five convolutions, in units of the settings' ``width``."""

STRIDED = (1, 3, 4)
"""Convolutions (from 0) of stride 2, each halving the side: 32 px end at 4x4."""


class ConvNet(nn.Module):
    """Five 3x3 convolutions, three of them of stride 2, then one linear layer on the flattened features.

    Of the kind used by Geiping et al. 2020 ("Inverting Gradients", arXiv:2003.14053) with five convolutions in
    place of eight, for speed, and strides in place of max pools, which hide three of four positions from the
    gradient: 0.30 million parameters at 32 px and width 64. Convolutions are initialised after He et al. 2015
    (fan-in), so that it also trains without normalisation.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        image_size: tuple[int, int],
        width: int,
        normalisation: NormalisationKind,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        height, breadth = image_size
        for index, factor in enumerate(WIDTHS):
            convolution = nn.Conv2d(
                channels,
                factor * width,
                kernel_size=3,
                stride=2 if index in STRIDED else 1,
                padding=1,
                # A normalisation subtracts the bias again, or learns its own.
                bias=normalisation == "none",
            )
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            layers[f"conv{index}"] = convolution
            layers[f"norm{index}"] = normalisation_layer(normalisation, factor * width)
            layers[f"activation{index}"] = nn.GELU() if activation == "gelu" else nn.ReLU()
            if index in STRIDED:
                height, breadth = -(-height // 2), -(-breadth // 2)
            channels = factor * width
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels * height * breadth, classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images that are as large as ``image_size`` said."""
        return self.classifier(self.features(images).flatten(1))


def build_convnet(settings: ModelSettings, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The ConvNet with the settings' width, normalisation and activation."""
    return ConvNet(
        channels=channels,
        classes=classes,
        image_size=image_size,
        width=settings.width,
        normalisation=settings.normalisation,
        activation=settings.activation,
    )


CONVNET = ModelKind(
    "convnet", "five 3x3 convolutions and a linear layer", NoOptions, build_convnet, ("batch", "group", "none")
)
