"""Rounds of some of the clients: the strategy inside is shown the nodes of those alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from shadow_defense.errors import RunError
from shadow_defense.federated.flower.replies import partition_of
from shadow_defense.federated.flower.strategy_wrapper import StrategyWrapper

log = logging.getLogger("shadow_defense.federated.flower")


class SamplingStrategy(StrategyWrapper):
    """Asks the clients that were drawn for a round, as numbered by their sites (``partition-id``), and no others.

    Flower's strategies draw nodes, whose numbers are new with every start: no engine could draw the same clients, nor a
    training that was stopped. So every node is asked once, by a message without content, which client it is.

    Args:
        chosen: the clients of a round (0-based), by partition.
        first_round: rounds before this Flower run, where it goes on with an earlier one.
        timeout: seconds to wait for the nodes of a round, and for each answer; None: for ever.

    Raises:
        RunError: in a round of which a client's node does not come in that time.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        chosen: Callable[[int], Collection[int]],
        first_round: int = 0,
        timeout: float | None = None,
    ) -> None:
        super().__init__(inner)
        self.chosen, self.first_round, self.timeout = chosen, first_round, timeout
        self._partitions: dict[int, int] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nodes = self._nodes_of(self.chosen(self.first_round + server_round - 1), grid)
        return self.inner.configure_train(server_round, arrays, config, _PartOfGrid(grid, nodes))

    def _nodes_of(self, wanted: Collection[int], grid: Grid) -> list[int]:
        """A node of each wanted client, once all of them are there, as Flower's strategies wait for nodes."""
        began = time.monotonic()
        while True:
            present = list(grid.get_node_ids())
            self._ask([node for node in present if node not in self._partitions], grid)
            found: dict[int, int] = {}
            for node in present:
                if node in self._partitions:
                    # Of two that say they are the same client, the one that was there first.
                    found.setdefault(self._partitions[node], node)
            missing = [partition for partition in wanted if partition not in found]
            if not missing:
                return [found[partition] for partition in wanted]
            if self.timeout is not None and time.monotonic() - began > self.timeout:
                raise RunError(
                    f"no node said within {self.timeout:.0f} s that it is client {', '.join(map(str, missing))} "
                    "(partition-id): start it and give the same command again"
                )
            log.info("waiting for the nodes of clients %s", missing)
            time.sleep(1)

    def _ask(self, nodes: Sequence[int], grid: Grid) -> None:
        if not nodes:
            return
        questions = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes]
        for reply in grid.send_and_receive(questions, timeout=self.timeout):
            # One that failed to answer is asked again.
            partition = None if reply.has_error() else partition_of(reply)
            if partition is not None:
                self._partitions[reply.metadata.src_node_id] = partition


class _PartOfGrid(Grid):
    """A Grid that knows some of the nodes only."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return self._grid.create_message(*arguments, **named)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)
