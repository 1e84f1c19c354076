"""The registry of task models: this package's own, by the module that has each, and what other packages add."""

from __future__ import annotations

from shadow_defense.errors import ModelError
from shadow_defense.models.kind import ModelKind
from shadow_defense.registry import Registry

OWN: dict[str, ModelKind | str] = {
    "convnet": "shadow_defense.models.convnet",
    "densenet121": "shadow_defense.models.densenet",
    "lenet": "shadow_defense.models.lenet",
    "resnet18": "shadow_defense.models.resnet",
}

MODELS: Registry[ModelKind] = Registry("model", ModelKind, OWN, ModelError)
