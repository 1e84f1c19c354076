"""A strategy wrapper that lets nothing spoil the global model: unusable replies are left out, types are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from shadow_defense.errors import RunError, UpdateError
from shadow_defense.federated.flower.records import read_record, to_record
from shadow_defense.federated.flower.replies import sender_of, update_of
from shadow_defense.federated.flower.strategy_wrapper import StrategyWrapper
from shadow_defense.federated.server import apply_update
from shadow_defense.federated.states import change

log = logging.getLogger("shadow_defense.federated.flower")


class CheckedStrategy(StrategyWrapper):
    """Passes on the replies that fit the model and are finite; the others are named in the log.

    What comes back has the tensors' own types: FedAvg makes floating-point numbers of integer counters. Replies are
    passed on in the order of their senders' names, so that the same replies give the same sum to the bit.

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
        for reply in sorted(replies, key=lambda reply: (sender_of(reply, self.names), reply.metadata.src_node_id)):
            try:
                update_of(reply, self._sent, server_round - 1, self.names)
                usable.append(reply)
            except UpdateError as error:
                log.warning("round %d of this Flower run: left out: %s", server_round, error)
                reasons.append(str(error))
        if len(usable) < self.at_least:
            raise RunError(
                f"round {server_round} of this Flower run has {len(usable)} usable updates, at least {self.at_least} "
                f"are needed: {'; '.join(reasons) or 'no client answered in time'}"
            )
        arrays, metrics = self.inner.aggregate_train(server_round, usable)
        return (None if arrays is None else self._in_own_types(arrays)), metrics

    def _in_own_types(self, arrays: ArrayRecord) -> ArrayRecord:
        """What was sent plus the average change, as in one process (``apply_update``): counters stay integers."""
        averaged = read_record(arrays, self._sent, "the averaged model")
        for name, tensor in averaged.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise RunError(f"the average of tensor '{name}' is not finite: lower the learning rate")
        return to_record(apply_update(self._sent, change(self._sent, averaged)))
