"""The user's training step as the guard reads it: models, loss, and what takes the logits out of an output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shadow_defense.errors import DefenseError, ModelError, ShadowDefenseError
from shadow_defense.models.functional import LossFunction
from shadow_defense.models.named_state import ModelState, named_state, reached_tensors
from shadow_defense.shadow.targets import training_loss


@dataclass(frozen=True)
class TrainingTask:
    """What a batch is trained on.

    Attributes:
        model: the local model, without what it was wrapped in.
        global_state: this round's global model, by the names of ``model``.
        loss_fn: from (the model's output, labels) to one number.
        logits: takes (n, k) logits out of the model's output; None where it is them.
    """

    model: nn.Module
    global_state: Mapping[str, Tensor]
    loss_fn: LossFunction
    logits: Callable[[Any], Tensor] | None


def read_task(
    model: nn.Module, global_model: ModelState, loss_fn: LossFunction, logits: Callable[[Any], Tensor] | None
) -> TrainingTask:
    """The task, with its tensors checked.

    Args:
        model: without what it was wrapped in.

    Raises:
        ModelError: for a model of which nothing is trained, or that the global one doesn't fit.
        DefenseError: where one of the two holds NaN or infinity.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("the model has no trainable parameter, so that no update is sent: unfreeze what you train")
    global_state = named_state(model, global_model)
    for which, tensors in (("the model", reached_tensors(model)), ("the global model", global_state)):
        check_finite(which, tensors, "go back to its last finite state; no update leaves")
    return TrainingTask(model, global_state, training_loss(loss_fn), logits)


def check_finite(what: str, tensors: Mapping[str, Tensor], hint: str) -> None:
    """Raise :class:`DefenseError`, naming the tensor, where one holds NaN or infinity."""
    floats = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    # A sum is not finite where an entry is not: one pass over each, where to look at every entry takes four.
    if not floats or bool(torch.stack([tensor.sum().double() for tensor in floats.values()]).isfinite().all()):
        return
    for name, tensor in floats.items():
        if not torch.isfinite(tensor).all():
            raise DefenseError(f"{what} holds NaN or infinity in '{name}': {hint}")


@contextmanager
def model_in_words() -> Iterator[None]:
    """Turn whatever a user's model raises in the block into a :class:`ModelError` of one line."""
    try:
        yield
    except (ShadowDefenseError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "more than 1 value per channel" in str(error):
            raise ModelError(
                "batch norm cannot train on a batch of one at a feature map of one pixel: larger images or batches, "
                "model.stem=small, model.normalisation=group, or training.batch_norm=eval"
            ) from error
        line = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(
            "the model can't be run with other parameters on these images, or not be differentiated twice "
            f"({type(error).__name__}: {line}): give the module that you train, as it is before it is wrapped"
        ) from error
