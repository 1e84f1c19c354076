"""The normalisation layers of the task models, and how a model with batch norm gets another kind."""

from __future__ import annotations

from torch import nn

from shadow_defense.models.settings import NormalisationKind

GROUPS = 8
"""Groups of every group norm: divides every channel count of ResNet-18, DenseNet-121 and the ConvNet."""


def normalisation_layer(kind: NormalisationKind, channels: int) -> nn.Module:
    """A fresh layer over ``channels`` channels of (n, c, h, w) features: batch norm, group norm, or identity."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(GROUPS, channels)
    return nn.Identity()


def replace_batch_norm(model: nn.Module, kind: NormalisationKind) -> None:
    """Put a fresh layer of ``kind`` in the place, and under the name, of every batch norm of ``model``.

    MONAI's own ``norm`` argument is not enough: its ResNet hands it to the stem only, and 19 of ResNet-18's 20
    batch norms stay (MONAI 1.6).
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, normalisation_layer(kind, child.num_features))


def disable_inplace_relu(model: nn.Module) -> None:
    """Let every ReLU of ``model`` return a new tensor.

    In place it gives the same gradients, but overwrites what a hook on the layer before it has kept: the features
    that Grad-CAM++, Soteria and the batch-statistics recorder read.
    """
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
