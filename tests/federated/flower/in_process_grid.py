"""Flower's Grid in one process, without Ray and without sockets: the same apps, in milliseconds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# Private, and needed by Message(...) outside of the engines since 1.41.
from flwr.supercore.task_identity import TaskIdentity


def be_somebody() -> None:
    """So that messages can be made in this process."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


class InProcessGrid(Grid):
    """Nodes 100, 101, ... of one ClientApp, each with its own context; every message that passes is kept.

    Attributes:
        timeouts: how long each sender would have waited.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        node_config: Mapping[str, Any] | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        be_somebody()
        self.app = app
        self.contexts = {
            100 + index: Context(
                run_id=1,
                node_id=100 + index,
                node_config={"partition-id": index, "num-partitions": nodes, **(node_config or {})},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for index in range(nodes)
        }
        self.sent: list[Message] = []
        self.replies: list[Message] = []
        self.timeouts: list[float | None] = []
        self._numbers = itertools.count(1)

    def set_run(self, *arguments: Any, **named: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def answer(self, message: Message) -> Message:
        """The reply of the node that the message is for."""
        # A copy of its own, as over a wire: strategies reuse one record for all nodes.
        received = copy.deepcopy(message)
        try:
            return self.app(received, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            # As Flower's engines do, text and all.
            return Message(Error(code=2, reason=repr(error)), reply_to=received)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.timeouts.append(timeout)
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            self.sent.append(copy.deepcopy(message))
            replies.append(copy.deepcopy(self.answer(message)))
        self.replies += replies
        # Whatever the order that they come in.
        return reversed(replies)

    def get_nodes(self) -> Iterable[Any]:
        raise NotImplementedError


def start(app: ServerApp, grid: Grid, run_config: Mapping[str, Any] | None = None) -> None:
    """Run a ServerApp to its end."""
    told = dict(run_config or {})
    app(grid=grid, context=Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=told))
