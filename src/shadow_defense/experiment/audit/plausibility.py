"""Whether a file given as an update can be one: states, gradients and swapped files are known by their geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shadow_defense.attacks.label_recovery import last_linear_layer
from shadow_defense.errors import ModelError, UpdateError
from shadow_defense.experiment.audit.facts import impossible_share
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.report.records.audit import TOO_LONG

SAME_DIRECTION = 0.3
"""Cosine to the global parameters from which an update may be a state: a training's own lies below 0.1, for what it
adds lies across what was there; a state's lay above 0.6, however far the client had gone."""

SAME_PLACE = 0.4
"""How much of the global parameters a state holds, and no update: late rounds go on in the direction of the parameters,
by a little of their length."""

NO_STATE = 0.1
"""How much of the global parameters a client's state holds at least, whatever weight decay took."""

UNDISTURBED = 0.02
"""Share of the last layer's update up to which its rows add up to zero: no noise lies on it."""

NEAR_FRESH = 1.0
"""Binary logarithm of a tensor's size to that of a fresh model's, up to which the tensor may be a state's."""


def check_update(
    update: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    model: nn.Module,
    *,
    what: str,
    present: int,
) -> None:
    """Raise :class:`UpdateError` for a state, for swapped files and for a gradient, each with what to give instead.

    Noise makes updates of any length and sign: what is not undisturbed is not judged by these.

    Args:
        state: given as the global model.
        fresh: the state of a model that was just built, whose sizes a state's resemble.
        what: the file, for the message.
        present: classes that the client has images of, at most.
    """
    names = [name for name, _ in model.named_parameters() if name in update]
    moved, before = _flat(update, names), _flat(state, names)
    if not moved.any() or not before.any():
        return
    off = _off_fresh(update, fresh, names)
    if off <= NEAR_FRESH and _off_fresh(state, fresh, names) > off + NEAR_FRESH / 2:
        raise UpdateError(
            f"{what} looks like a model and what was given as the global model like a difference: they seem to be "
            "swapped; give the model as --global and the difference as --update"
        )
    cosine = (moved @ before / (moved.norm() * before.norm())).item()
    if cosine > SAME_DIRECTION and _held(moved, before) > SAME_PLACE:
        raise UpdateError(
            f"{what} holds the global model itself (cosine {cosine:.2f}): it is a state, not a difference; give it as "
            "--after, and the global model as --before"
        )
    head = _head(model, update)
    if head is None or impossible_share(head[0]) > UNDISTURBED:
        return
    longer = (moved.norm() / before.norm()).item()
    if longer > TOO_LONG:
        raise UpdateError(
            f"{what} is {longer:.1f} times as long as the global model's parameters: it looks like a gradient, or like "
            "the difference to another model; give the difference of states, which is -learning rate x gradient after "
            "one step of SGD"
        )
    if head[1] is not None and _uphill(head[1], present):
        raise UpdateError(
            f"{what} lowers the classes that the client has and raises the others: it looks like a gradient, or like "
            "before - after; give after - before, which is -learning rate x gradient after one step of SGD"
        )


def check_state(after: Mapping[str, Tensor], state: Mapping[str, Tensor], model: nn.Module, what: str) -> None:
    """Raise :class:`UpdateError` where what was given as the client's state holds nothing of the global model."""
    names = [name for name, _ in model.named_parameters() if name in after]
    given, before = _flat(after, names), _flat(state, names)
    if before.any() and _held(given, before) < NO_STATE:
        raise UpdateError(
            f"{what} holds nothing of the global model: it is a difference, or a state of another training; give a "
            "difference as --update"
        )


def check_length(update: Mapping[str, Tensor], model: nn.Module, local: LocalTraining, what: str) -> None:
    """Raise :class:`UpdateError` where SGD on cross entropy cannot have come so far: ``|db_j| <= eta K``.

    A logit's gradient is ``p_j - y_j``, of size 1 at most; ``K = steps / (1 - momentum)``.
    """
    head = _head(model, update)
    if head is None or head[1] is None or impossible_share(head[0]) > UNDISTURBED:
        return
    most = local.learning_rate * local.steps / (1 - local.momentum)
    found = head[1].abs().max().item()
    if found > 1.01 * most and not local.weight_decay:
        raise UpdateError(
            f"{what} moves the last bias by {found:.2g}, and {local.steps} steps of SGD at --learning-rate "
            f"{local.learning_rate:g} by {most:.2g} at most: check both, or multiply a gradient by -learning rate first"
        )


def _flat(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(tensors[name].double().flatten() for name in names)])


def _held(vector: Tensor, of: Tensor) -> float:
    """``<a, b> / <b, b>``: 1 for a state, whatever was added across b."""
    return (vector @ of / (of @ of)).item()


def _off_fresh(tensors: Mapping[str, Tensor], fresh: Mapping[str, Tensor], names: Sequence[str]) -> float:
    """The largest binary logarithm, up or down, of a weight's size to that of a fresh model's."""
    logarithms = [
        (tensors[name].double().norm() / fresh[name].double().norm()).log2().abs().item()
        for name in names
        if fresh[name].dim() > 1
    ]
    return max(logarithms, default=float("inf"))


def _head(model: nn.Module, update: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None] | None:
    try:
        layer = last_linear_layer(model)
    except ModelError:
        return None
    weight = update.get(f"{layer}.weight")
    return None if weight is None or not weight.any() else (weight, update.get(f"{layer}.bias"))


def _uphill(bias: Tensor, present: int) -> bool:
    """Whether the last bias moves against its classes: cross entropy lowers every class that no image has.

    ``dL / db_j`` is the mean of ``p_j - y_j``, above zero for a class without images in every step; so that no more
    entries rise than there are classes with images, ``present`` at most.
    """
    return int((bias > 0).sum()) > present >= int((bias < 0).sum())
