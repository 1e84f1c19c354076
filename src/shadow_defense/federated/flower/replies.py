"""A client's reply as a ModelUpdate: what the server can tell of it, and believe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from shadow_defense.errors import UpdateError, shown
from shadow_defense.federated.flower.records import CONTROL, SAMPLES, STEPS, from_record
from shadow_defense.federated.flower.site_state import PARTITION
from shadow_defense.federated.states import change
from shadow_defense.federated.update import MOST_COUNTED, ModelUpdate

LARGEST_CHANGE = 2.0**60
"""Of a value in one round: the square of a larger one, which some strategies take, is none in single precision."""

LARGEST_COUNT = 2.0**31
"""Of a counter, such as that of batch norm's batches, in one round."""


def sender_of(reply: Message, names: Sequence[str] = ()) -> str:
    """The client's name: by the partition that it says it is, else by its node, whose number no restart keeps."""
    partition = partition_of(reply)
    if partition is None or (names and partition >= len(names)):
        return f"node-{reply.metadata.src_node_id}"
    return names[partition] if names else f"partition-{partition}"


def senders_of(replies: Sequence[Message], names: Sequence[str] = ()) -> list[str]:
    """The name of each reply's client; where several say that they are the same one, none of them is believed."""
    claimed = [sender_of(reply, names) for reply in replies]
    times = Counter(claimed)
    return [
        name if times[name] == 1 else f"node-{reply.metadata.src_node_id}"
        for name, reply in zip(claimed, replies, strict=True)
    ]


def partition_of(reply: Message) -> int | None:
    """Which of the clients a node says it is; None where it does not, or says what cannot be."""
    return _count(reply, PARTITION)


def update_of(
    reply: Message,
    global_state: Mapping[str, Tensor],
    round: int,
    names: Sequence[str] = (),
    *,
    sender: str | None = None,
) -> ModelUpdate:
    """What a reply adds to the global state that it was computed from.

    Args:
        global_state: the tensors that were sent to the client, in the clients' types.
        round: 0-based.
        names: of the clients, by partition.
        sender: the client's name, where the caller knows it.

    Raises:
        UpdateError: for a reply that is an error, does not fit the model, or says what cannot be: NaN, infinity, a
            change beyond :data:`LARGEST_CHANGE`, a count below zero or beyond :data:`MOST_COUNTED`.
    """
    sender = sender or sender_of(reply, names)
    if reply.has_error():
        raise UpdateError(f"{sender} sent no update: {shown(reply.error.reason)}")
    if not reply.has_content():
        raise UpdateError(f"{sender} sent an empty reply: expected a set of tensors")
    after = from_record(tensors_of(reply, sender), global_state, f"the reply of {sender}")
    for name, tensor in after.items():
        _check_change(name, tensor.double() - global_state[name].double(), global_state[name], sender)
    samples, steps = _count(reply, SAMPLES), _count(reply, STEPS)
    if samples is None:
        raise UpdateError(
            f"the reply of {sender} does not say how many images it comes from ('{SAMPLES}', up to {MOST_COUNTED})"
        )
    if steps is None and _said(reply, STEPS) is not None:
        raise UpdateError(f"the reply of {sender} says {STEPS}={shown(_said(reply, STEPS), 40)}: expected a count")
    return ModelUpdate(change(global_state, after), samples, steps or 0, round, sender)


def tensors_of(reply: Message, sender: str) -> ArrayRecord:
    """The model's tensors in a reply. Raises :class:`UpdateError` where there is not one set of them."""
    records = [record for name, record in reply.content.array_records.items() if name != CONTROL]
    if len(records) != 1:
        raise UpdateError(f"the reply of {sender} holds {len(records)} sets of tensors: expected one")
    return records[0]


def _check_change(name: str, changed: Tensor, before: Tensor, sender: str) -> None:
    if not torch.isfinite(changed).all():
        raise UpdateError(f"tensor '{name}' in the update of {sender} holds NaN or infinity")
    limit = LARGEST_CHANGE if before.is_floating_point() else LARGEST_COUNT
    if changed.numel() and float(changed.abs().max()) > limit:
        raise UpdateError(f"tensor '{name}' in the update of {sender} changes by more than {limit:.0e}")


def _count(reply: Message, key: str) -> int | None:
    """A whole number from 0 to :data:`MOST_COUNTED` that a reply says, or nothing."""
    value = _said(reply, key)
    if not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        return None
    return int(value) if 0 <= value <= MOST_COUNTED else None


def _said(reply: Message, key: str) -> object:
    """The first that a reply says under a key."""
    if reply.has_content():
        for metrics in reply.content.metric_records.values():
            if key in metrics:
                return metrics[key]
    return None
