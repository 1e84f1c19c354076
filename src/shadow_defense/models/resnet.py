"""ResNet-18: MONAI's network with torchvision's tensor names."""

from __future__ import annotations

from torch import nn

from shadow_defense.models.kind import ModelKind
from shadow_defense.models.normalisation import disable_inplace_relu, replace_batch_norm
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.weights import TorchvisionNames
from shadow_defense.registry import NoOptions

RESNET18_NAMES = TorchvisionNames(model="resnet18", stem="conv1.weight", head="fc", renamed=())


def build_resnet18(settings: ModelSettings, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """He et al. 2015 (arXiv:1512.03385), the same function and tensor names as torchvision's ``resnet18``.

    The small stem is the one that He et al. used for CIFAR: a 3x3 convolution with stride 1 and no max pooling.
    """
    from monai.networks.nets import resnet18

    small = settings.has_small_stem(image_size)
    model: nn.Module = resnet18(
        spatial_dims=2,
        n_input_channels=channels,
        num_classes=classes,
        conv1_t_size=3 if small else 7,
        # Without these two it is not torchvision's function: MONAI's defaults are for volumes.
        conv1_t_stride=1 if small else 2,
        bias_downsample=False,
        no_max_pool=small,
    )
    if settings.normalisation != "batch":
        replace_batch_norm(model, settings.normalisation)
    disable_inplace_relu(model)
    return model


RESNET18 = ModelKind("resnet18", "ResNet-18", NoOptions, build_resnet18, ("batch", "group"), RESNET18_NAMES)
