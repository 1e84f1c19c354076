"""The LeNet on which Deep Leakage from Gradients was shown: smooth, so that an attack has gradients to follow."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.models.kind import ModelKind
from shadow_defense.models.settings import ModelSettings
from shadow_defense.registry import NoOptions

WIDTH = 12
STRIDES = (2, 2, 1)


class LeNet(nn.Module):
    """Three 5x5 convolutions of 12 channels with sigmoid, then one linear layer on the flattened features.

    Zhu et al. 2019 ("Deep Leakage from Gradients", arXiv:1906.08935) and their code: strides 2, 2, 1, every weight
    and bias drawn from U(-0.5, 0.5), sigmoid in place of ReLU because the attack needs second derivatives.
    768 features at 32 px.
    """

    def __init__(self, *, channels: int, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        height, breadth = image_size
        for stride in STRIDES:
            layers += [nn.Conv2d(channels, WIDTH, kernel_size=5, stride=stride, padding=2), nn.Sigmoid()]
            # A stride of 2 with this padding keeps the odd pixel: rounded up.
            height, breadth = -(-height // stride), -(-breadth // stride)
            channels = WIDTH
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(WIDTH * height * breadth, classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images that are as large as ``image_size`` said."""
        return self.classifier(self.features(images).flatten(1))


def build_lenet(settings: ModelSettings, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The LeNet; nothing of the settings concerns it."""
    return LeNet(channels=channels, classes=classes, image_size=image_size)


LENET = ModelKind("lenet", "the victim of DLG: sigmoids, no normalisation", NoOptions, build_lenet, ("none",))
