"""A task model from its settings."""

from __future__ import annotations

import torch
from torch import nn

from shadow_defense.errors import ModelError
from shadow_defense.models.imprint import ImprintedModel, brightness_edges
from shadow_defense.models.kind import ModelKind
from shadow_defense.models.registry import MODELS
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.tensor_names import Convention, under_own_names
from shadow_defense.models.weights import load_imagenet_weights, read_state
from shadow_defense.seeds import seed_for

MINIMUM_SIDE = 8
"""Pixels: three halvings leave one."""

MINIMUM_SIDE_IMAGENET_STEM = 32
"""Pixels: five halvings leave one."""


def conventions() -> list[Convention]:
    """By which other names the tensors of this package's models are known."""
    return [kind.imagenet.to_torchvision for kind in MODELS.own.values() if kind.imagenet is not None]


def build_model(
    settings: ModelSettings,
    *,
    channels: int,
    classes: int,
    image_size: tuple[int, int],
    seed: int,
    brightness: tuple[float, float] = (0.0, 1.0),
) -> nn.Module:
    """The task model that the settings name, on the CPU, in train mode.

    The initialisation depends on ``seed`` alone and leaves torch's global random state as it was.

    Args:
        channels: of the images, 1 or more.
        classes: number of logits, 2 or more.
        image_size: (height, width) in pixels; it need not be a power of two.
        brightness: mean and standard deviation of the mean normalised pixel of public images, for the bins of an
            imprint.

    Raises:
        ModelError: for an unknown name, settings that the model cannot have, images that are too small, or
            weights that cannot be read or do not fit.
    """
    kind = MODELS.find(settings.name)
    _check_settings(settings, kind)
    _check_sizes(settings, kind, channels, classes, image_size)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: it would also seed the accelerators, whose state is the caller's.
        torch.default_generator.manual_seed(seed_for(seed, "model"))
        model = kind.build(settings, channels, classes, image_size)
    if settings.weights is not None and kind.imagenet is not None:
        load_imagenet_weights(model, kind.imagenet, settings.weights)
    if settings.start is not None:
        _load_start(model, settings)
    if settings.imprint is not None:
        return ImprintedModel(model, (channels, *image_size), brightness_edges(*brightness, settings.imprint))
    return model


def _load_start(model: nn.Module, settings: ModelSettings) -> None:
    """Take every tensor of the model from ``settings.start``."""
    assert settings.start is not None
    if settings.weights is not None:
        raise ModelError("model.start and model.weights both say where the model begins: leave one of them empty")
    own = model.state_dict()
    state, _ = under_own_names(read_state(settings.start), own, conventions())
    differing = [
        name
        for name in sorted(own.keys() | state.keys())
        if name not in own or name not in state or own[name].shape != state[name].shape
    ]
    if differing:
        raise ModelError(
            f"{settings.start} is no state of this {settings.name}: tensor '{differing[0]}' is missing, unexpected or "
            "of another shape; give a state of the same architecture, classes and image size"
        )
    infinite = next((name for name, tensor in state.items() if not tensor.isfinite().all()), None)
    if infinite is not None:
        raise ModelError(f"{settings.start}: tensor '{infinite}' is not finite; give another state")
    model.load_state_dict(state)


def _check_settings(settings: ModelSettings, kind: ModelKind) -> None:
    name = settings.name
    kind.options_of(settings.options, ModelError, "model.options")
    if settings.normalisation not in kind.normalisations:
        valid = " or ".join(kind.normalisations)
        raise ModelError(
            f"{name} cannot have normalisation '{settings.normalisation}': set model.normalisation to {valid}"
        )
    if kind.imagenet is None:
        if settings.stem != "auto":
            raise ModelError(f"{name} has no stem '{settings.stem}': leave model.stem at auto")
        if settings.weights is not None:
            with_weights = " or ".join(name for name, other in MODELS.own.items() if other.imagenet is not None)
            raise ModelError(f"{name} has no ImageNet weights: leave model.weights empty or take {with_weights}")
    if settings.weights is not None and settings.normalisation != "batch":
        raise ModelError(
            f"ImageNet weights of {name} were trained with batch norm, not '{settings.normalisation}': "
            "set model.normalisation to batch or leave model.weights empty"
        )


def _check_sizes(
    settings: ModelSettings, kind: ModelKind, channels: int, classes: int, image_size: tuple[int, int]
) -> None:
    if channels < 1 or classes < 2:
        raise ModelError(
            f"{settings.name} for {channels} channels and {classes} classes: expected at least 1 channel and 2 "
            "classes; check the data"
        )
    small = kind.imagenet is None or settings.has_small_stem(image_size)
    minimum = MINIMUM_SIDE if small else MINIMUM_SIDE_IMAGENET_STEM
    if min(image_size) < minimum:
        hint = "" if small else " or set model.stem to small"
        raise ModelError(
            f"images of {image_size[0]} x {image_size[1]} pixels are too small for {settings.name}: expected at "
            f"least {minimum} a side; set data.image_size higher{hint}"
        )
