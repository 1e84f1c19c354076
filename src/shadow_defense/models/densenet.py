"""DenseNet-121: MONAI's network, and the way from its tensor names to torchvision's."""

from __future__ import annotations

from torch import nn

from shadow_defense.models.kind import ModelKind
from shadow_defense.models.normalisation import disable_inplace_relu, replace_batch_norm
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.weights import TorchvisionNames
from shadow_defense.registry import NoOptions

DENSENET121_NAMES = TorchvisionNames(
    model="densenet121",
    stem="features.conv0.weight",
    head="classifier",
    renamed=((".layers.", "."), ("class_layers.out.", "classifier.")),
)


def build_densenet121(settings: ModelSettings, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Huang et al. 2017 (arXiv:1608.06993), the same function as torchvision's ``densenet121``.

    The small stem is the one that Huang et al. used for CIFAR: a 3x3 convolution with stride 1 and no max pooling.
    """
    from monai.networks.nets import DenseNet121

    model = DenseNet121(spatial_dims=2, in_channels=channels, out_channels=classes)
    if settings.has_small_stem(image_size):
        convolution = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight)
        model.features.conv0 = convolution
        model.features.pool0 = nn.Identity()
    if settings.normalisation != "batch":
        replace_batch_norm(model, settings.normalisation)
    disable_inplace_relu(model)
    return model


DENSENET121 = ModelKind(
    "densenet121", "DenseNet-121", NoOptions, build_densenet121, ("batch", "group"), DENSENET121_NAMES
)
