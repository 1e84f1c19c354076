"""A strategy wrapper that lets nothing spoil the global model: unusable replies are left out, types are kept."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from shadow_defense.errors import RunError, UpdateError, shown
from shadow_defense.federated.flower.records import ARRAYS, METRICS, SAMPLES, from_record, to_record
from shadow_defense.federated.flower.replies import senders_of, tensors_of, update_of
from shadow_defense.federated.flower.strategy_wrapper import StrategyWrapper
from shadow_defense.federated.server import apply_update
from shadow_defense.federated.states import change
from shadow_defense.federated.update import MOST_COUNTED

log = logging.getLogger("shadow_defense.federated.flower")


class CheckedStrategy(StrategyWrapper):
    """Passes on the replies that fit the model and are finite; the others are named in the log.

    No reply, whatever is in it, ends the training or reaches the strategy inside as it came: that is given the tensors
    and the metrics that all usable replies have, each in a message of its own. What comes back has the tensors' own
    types: FedAvg makes floating-point numbers of integer counters. Replies are passed on in the order of their senders'
    names, so that the same replies give the same sum to the bit.

    It does not find out who lies within these bounds: a finite update of the right shape counts.

    Args:
        names: of the clients, by partition, for the log.
        at_least: usable replies without which a round counts for nothing and the training stops.
    """

    def __init__(self, inner: Strategy, *, names: Sequence[str] = (), at_least: int = 1) -> None:
        super().__init__(inner)
        self.names, self.at_least = tuple(names), at_least
        self._sent: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._sent = dict(arrays.to_torch_state_dict())
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raises :class:`RunError` where fewer than ``at_least`` replies can be used."""
        usable, reasons = list[Message](), list[str]()
        for sender, reply in self._in_order(replies):
            try:
                update_of(reply, self._sent, server_round - 1, sender=sender)
                metrics = self._scalars(reply, sender)
                after = to_record(from_record(tensors_of(reply, sender), self._sent, f"the reply of {sender}"))
                usable.append(_same_message(reply, RecordDict({ARRAYS: after, METRICS: metrics})))
            except UpdateError as error:
                log.warning("round %d of this Flower run: left out: %s", server_round, error)
                reasons.append(str(error))
        if len(usable) < self.at_least:
            raise RunError(
                f"round {server_round} of this Flower run has {len(usable)} usable updates, at least {self.at_least} "
                f"are needed: {'; '.join(reasons) or 'no client answered in time'}"
            )
        arrays, metrics = self.inner.aggregate_train(server_round, _of_one_kind(usable))
        return (None if arrays is None else self._in_own_types(arrays)), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        usable = []
        for sender, reply in self._in_order(replies):
            try:
                if reply.has_error():
                    raise UpdateError(f"{sender} sent no evaluation: {shown(reply.error.reason)}")
                usable.append(_same_message(reply, RecordDict({METRICS: self._scalars(reply, sender)})))
            except UpdateError as error:
                log.warning("evaluation %d of this Flower run: left out: %s", server_round, error)
        return self.inner.aggregate_evaluate(server_round, _of_one_kind(usable)) if usable else None

    def _in_order(self, replies: Iterable[Message]) -> list[tuple[str, Message]]:
        """Each node's one reply with its client's name; of a node that answers twice the first counts."""
        first: dict[int, Message] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in first:
                log.warning("left out: another reply of node %d", node)
            first.setdefault(node, reply)
        once = list(first.values())
        named = zip(senders_of(once, self.names), once, strict=True)
        return sorted(named, key=lambda each: (each[0], each[1].metadata.src_node_id))

    def _scalars(self, reply: Message, sender: str) -> MetricRecord:
        """The single finite numbers that a reply says, among them a number of images and the weight in the average."""
        said: dict[str, int | float] = {}
        for metrics in reply.content.metric_records.values():
            for name, value in metrics.items():
                if name not in said and isinstance(value, int | float) and math.isfinite(value):
                    said[name] = value
        samples = said.get(SAMPLES)
        if samples is None or samples != int(samples) or not 1 <= samples <= MOST_COUNTED:
            raise UpdateError(f"the reply of {sender} says {SAMPLES}={samples}: expected 1 to {MOST_COUNTED}")
        weight = said.get(self._weighted_by)
        if weight is None or not 0 < weight <= MOST_COUNTED:
            raise UpdateError(f"the reply of {sender} says {self._weighted_by}={weight}: expected a positive number")
        return MetricRecord(said)

    @property
    def _weighted_by(self) -> str:
        """What the strategy innermost weighs clients by; Flower's are told."""
        inner = self.inner
        while isinstance(inner, StrategyWrapper):
            inner = inner.inner
        return str(getattr(inner, "weighted_by_key", SAMPLES))

    def _in_own_types(self, arrays: ArrayRecord) -> ArrayRecord:
        """What was sent plus the average change, as in one process (``apply_update``): counters stay integers."""
        averaged = from_record(arrays, self._sent, "the averaged model")
        for name, tensor in averaged.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise RunError(f"the average of tensor '{name}' is not finite: lower the learning rate")
        return to_record(apply_update(self._sent, change(self._sent, averaged)))


def _of_one_kind(replies: Sequence[Message]) -> list[Message]:
    """The replies with the metrics that all of them have: a strategy that averages wants the same of everybody."""
    common = set.intersection(*(set(reply.content[METRICS]) for reply in replies)) if replies else set()
    for reply in replies:
        metrics = reply.content.metric_records[METRICS]
        reply.content.metric_records[METRICS] = MetricRecord(
            {name: metrics[name] for name in metrics if name in common}
        )
    return list(replies)


def _same_message(reply: Message, content: RecordDict) -> Message:
    """``content`` as from the sender of ``reply``, which itself stays as it came."""
    same = copy.copy(reply)
    same.content = content
    return same
