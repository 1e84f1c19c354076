"""Labels in every form that a loss takes, and the loss as a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shadow_defense.errors import DataError, ModelError
from shadow_defense.models.functional import LossFunction


def as_labels(labels: Any, count: int) -> Tensor:
    """Labels as a tensor with one entry an image: whole numbers as int64, others as float32.

    Args:
        labels: tensor, array or (nested) list; one number alone for a batch of one.

    Raises:
        DataError: for anything else, another length, NaN or infinity, or a negative class.
    """
    try:
        values = torch.as_tensor(labels if isinstance(labels, Tensor) else np.array(labels)).detach()
    except (TypeError, ValueError) as error:
        raise DataError(f"labels of type {type(labels).__name__} are no numbers: give a tensor or a list") from error
    if values.is_complex() or values.layout != torch.strided or values.is_quantized:
        raise DataError(f"labels of type {values.dtype}, {values.layout}: give plain whole numbers or floats")
    values = values.as_subclass(Tensor)
    if values.dim() == 0:
        values = values.unsqueeze(0)
    if len(values) != count:
        raise DataError(f"{count} images with {len(values)} labels: give one of each")
    if values.is_floating_point():
        if not torch.isfinite(values).all():
            raise DataError("the labels hold NaN or infinity: leave those images out, or mark them by -1")
        return values.float()
    values = values.long()
    if values.numel() == count and int(values.min()) < 0:
        raise DataError(f"label {int(values.min())} is out of range: expected 0 or more")
    return values


def training_loss(loss_fn: LossFunction) -> LossFunction:
    """``loss_fn`` as one number: the mean where it gives a value for each image (``reduction="none"``).

    The labels are given as they are, and where the loss does not take them so, in the nearest form that it takes:
    (n, 1) as (n,), whole numbers as floats, floats in the shape of the outputs.

    Raises (the function that is returned):
        DataError: when the loss takes none of them.
        ModelError: when it gives something else than a tensor.
    """

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        first: Exception | None = None
        for form in _forms(outputs, labels):
            try:
                value = loss_fn(outputs, form)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                first = first or error
                continue
            if not isinstance(value, Tensor):
                raise ModelError(f"the loss gave a {type(value).__name__}: expected a tensor on the model's graph")
            return value.mean() if value.dim() else value
        if isinstance(first, IndexError):
            raise DataError(
                f"labels {labels.min()} to {labels.max()} do not fit the model's classes: {first}"
            ) from first
        raise DataError(
            f"the loss takes no labels of shape {tuple(labels.shape)} with the model's outputs"
            f"{_shape_in_words(outputs)} ({_first_line(first)}): give labels and loss as in your training step"
        ) from first

    return loss


def _forms(outputs: Any, labels: Tensor) -> Iterator[Tensor]:
    yield labels
    if labels.dim() == 2 and labels.shape[1] == 1:
        yield labels[:, 0]
    if isinstance(outputs, Tensor):
        if not labels.is_floating_point():
            yield labels.to(outputs.dtype)
        if labels.numel() == outputs.numel():
            yield labels.to(outputs.dtype).view_as(outputs)


def _shape_in_words(outputs: Any) -> str:
    return f" of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else ""


def _first_line(error: Exception | None) -> str:
    return (str(error).splitlines() or [""])[0][:160]
