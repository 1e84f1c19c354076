"""Models of one's own as entries of the registry: a factory in Python, or a model's file."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from shadow_defense.errors import ModelError, ShadowDefenseError, shown
from shadow_defense.models.functional import training_mode
from shadow_defense.models.kind import ModelKind
from shadow_defense.models.named_state import plain_module
from shadow_defense.models.opaque import load_opaque
from shadow_defense.models.settings import ModelSettings


class Arguments(BaseModel):
    """What a factory is called with, by its own names."""

    model_config = ConfigDict(extra="allow", frozen=True)


def factory_kind(place: str, found: Callable[..., object]) -> ModelKind:
    """The entry of what ``module:name``, or an entry point, stands for: what makes a module, or a module.

    It is called with ``model.options``, and with those of ``channels``, ``classes`` and ``image_size`` that its
    signature names and the options don't.
    """

    def build(settings: ModelSettings, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
        if isinstance(found, nn.Module):
            made: object = copy.deepcopy(found)
        else:
            given = {"channels": channels, "classes": classes, "image_size": image_size}
            made = _called(place, found, {**_named(found, given), **settings.options})
        return answering(plain_module(made), place, channels, classes, image_size)

    return ModelKind(place, "a factory of one's own", Arguments, build, ("batch", "group", "none"), own=True)


def file_kind(place: str) -> ModelKind:
    """The entry of an exported program or a TorchScript file."""

    def build(settings: ModelSettings, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
        return answering(load_opaque(Path(place)), place, channels, classes, image_size)

    return ModelKind(place, "a program in a file", Arguments, build, ("batch", "group", "none"), own=True)


def answering(model: nn.Module, place: str, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """``model``, in train mode, that answered two black images with (2, classes) logits.

    Raises:
        ModelError: with what it gave.
    """
    asked = f"{place} for images of {channels} x {image_size[0]} x {image_size[1]}"
    try:
        with torch.no_grad(), training_mode(model, False):
            answer: Any = model(torch.zeros(2, channels, *image_size))
    # Whatever a stranger's code raises.
    except Exception as error:
        raise ModelError(
            f"{asked} fails ({_line(error)}): set data.channels, data.image_size and model.options to what it takes; "
            "an exported program needs a dynamic batch size"
        ) from error
    if not isinstance(answer, Tensor) or answer.shape != (2, classes):
        gave = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ModelError(
            f"{asked} gives {gave} for two of them: expected logits of shape (2, {classes}); set model.options, "
            f"such as model.options.num_classes={classes}, or data.classes"
        )
    return model.train()


def _named(factory: Callable[..., object], given: dict[str, object]) -> dict[str, object]:
    try:
        names = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in given.items() if name in names}


def _called(place: str, factory: Callable[..., object], arguments: dict[str, object]) -> object:
    try:
        return factory(**arguments)
    except ShadowDefenseError:
        raise
    # Whatever a stranger's code raises.
    except Exception as error:
        passed = ", ".join(f"{name}={shown(value, 40)}" for name, value in arguments.items())
        raise ModelError(f"{place}({passed}) fails ({_line(error)}): correct model.options, or the factory") from error


def _line(error: Exception) -> str:
    return shown(" ".join(f"{type(error).__name__}: {error}".split()), 200)
