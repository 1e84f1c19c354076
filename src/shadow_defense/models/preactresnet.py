"""ResNet-18 with pre-activation: normalisation and ReLU before each convolution."""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.models.kind import ModelKind
from shadow_defense.models.normalisation import normalisation_layer
from shadow_defense.models.settings import ModelSettings, NormalisationKind
from shadow_defense.registry import NoOptions

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages, of two blocks each; each after the first halves the side."""


class Block(nn.Module):
    """``s(x) + conv2(relu(norm2(conv1(h))))`` with ``h = relu(norm1(x))``.

    s is the identity, and a 1x1 convolution of h where the shape changes (He et al. 2016, arXiv:1603.05027, figure 1b).
    """

    def __init__(self, before: int, after: int, stride: int, normalisation: NormalisationKind) -> None:
        super().__init__()
        self.norm1 = normalisation_layer(normalisation, before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm2 = normalisation_layer(normalisation, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else None

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d k l"]:
        active = self.relu1(self.norm1(features))
        kept = features if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(self.relu2(self.norm2(self.conv1(active))))


class PreactResNet18(nn.Module):
    """He et al. 2016: what is added goes through the whole network without a ReLU on its way.

    The stems are those of ResNet-18; images below 96 px get the small one.
    """

    def __init__(self, *, channels: int, classes: int, small: bool, normalisation: NormalisationKind) -> None:
        super().__init__()
        wide = WIDTHS[0]
        self.stem = (
            nn.Sequential(nn.Conv2d(channels, wide, 3, padding=1, bias=False))
            if small
            else nn.Sequential(nn.Conv2d(channels, wide, 7, 2, padding=3, bias=False), nn.MaxPool2d(3, 2, padding=1))
        )
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for stage, width in enumerate(WIDTHS):
            blocks[f"stage{stage}a"] = Block(wide, width, 1 if stage == 0 else 2, normalisation)
            blocks[f"stage{stage}b"] = Block(width, width, 1, normalisation)
            wide = width
        self.blocks = nn.Sequential(blocks)
        self.norm, self.relu = normalisation_layer(normalisation, wide), nn.ReLU()
        self.classifier = nn.Linear(wide, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        features = self.relu(self.norm(self.blocks(self.stem(images))))
        return self.classifier(torch.mean(features, dim=(2, 3)))


def build_preactresnet18(
    settings: ModelSettings, channels: int, classes: int, image_size: tuple[int, int]
) -> nn.Module:
    """The network with the settings' normalisation."""
    small = settings.has_small_stem(image_size)
    return PreactResNet18(channels=channels, classes=classes, small=small, normalisation=settings.normalisation)


PREACTRESNET18 = ModelKind(
    "preactresnet18", "ResNet-18 with pre-activation", NoOptions, build_preactresnet18, ("batch", "group")
)
