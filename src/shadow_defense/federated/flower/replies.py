"""A client's reply as a ModelUpdate: what the server can tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import Message
from torch import Tensor

from shadow_defense.errors import UpdateError
from shadow_defense.federated.flower.client_app import PARTITION, SAMPLES, STEPS
from shadow_defense.federated.flower.records import read_record
from shadow_defense.federated.states import change
from shadow_defense.federated.update import ModelUpdate


def sender_of(reply: Message, names: Sequence[str] = ()) -> str:
    """The client's name: by the partition that it says it is, else by its node, whose number no restart keeps."""
    partition = partition_of(reply)
    if partition is None:
        return f"node-{reply.metadata.src_node_id}"
    return names[partition] if 0 <= partition < len(names) else f"partition-{partition}"


def partition_of(reply: Message) -> int | None:
    """Which of the clients a node says it is; None where it does not."""
    return _number(reply, PARTITION)


def update_of(reply: Message, global_state: Mapping[str, Tensor], round: int, names: Sequence[str] = ()) -> ModelUpdate:
    """What a reply adds to the global state that it was computed from.

    Args:
        global_state: the tensors that were sent to the client, in the clients' types.
        round: 0-based.
        names: of the clients, by partition.

    Raises:
        UpdateError: for a reply that is an error, does not fit the model, or holds NaN or infinity.
    """
    sender = sender_of(reply, names)
    if reply.has_error():
        raise UpdateError(f"{sender} sent no update: {reply.error.reason}")
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise UpdateError(f"the reply of {sender} holds {len(records)} sets of tensors: expected one")
    after = read_record(records[0], global_state, f"the reply of {sender}")
    samples = _number(reply, SAMPLES)
    if samples is None:
        raise UpdateError(f"the reply of {sender} does not say how many images it comes from ('{SAMPLES}')")
    return ModelUpdate(change(global_state, after), samples, _number(reply, STEPS) or 0, round, sender)


def _number(reply: Message, key: str) -> int | None:
    if reply.has_content():
        for metrics in reply.content.metric_records.values():
            value = metrics.get(key)
            if isinstance(value, int | float) and value == int(value):
                return int(value)
    return None
