"""What is said of a task model beside its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shadow_defense.models.settings import ModelSettings, NormalisationKind
from shadow_defense.registry import Entry

if TYPE_CHECKING:
    from torch import nn

    from shadow_defense.models.weights import TorchvisionNames

ModelBuilder = Callable[[ModelSettings, int, int, tuple[int, int]], "nn.Module"]
"""(settings, channels, classes, (height, width)) to a fresh model: (n, channels, height, width) images to
(n, classes) logits."""


@dataclass(frozen=True)
class ModelKind(Entry):
    """A task model by name.

    Attributes:
        build: the builder.
        normalisations: what ``normalisation`` may be.
        imagenet: torchvision's names of its tensors; None for a model that has no ImageNet weights and no choice
            of stems.
        own: whether it is a model of one's own, which is run only where the command names it.
    """

    build: ModelBuilder
    normalisations: tuple[NormalisationKind, ...]
    imagenet: TorchvisionNames | None = None
    own: bool = False
