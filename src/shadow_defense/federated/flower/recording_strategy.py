"""The auditor: a strategy wrapper that writes down what the server sees, for ``shadow-defense audit``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from shadow_defense.errors import UpdateError
from shadow_defense.federated.flower.replies import senders_of, update_of
from shadow_defense.federated.flower.strategy_wrapper import StrategyWrapper
from shadow_defense.federated.states import in_types_of
from shadow_defense.federated.training_folder import round_folder, update_path
from shadow_defense.files import write_tensors

log = logging.getLogger("shadow_defense.federated.flower")

Chosen = Callable[[int], Collection[str] | None]
"""For a round (0-based) the names of the clients to record; None: all of them."""


def everyone(round: int) -> Collection[str] | None:
    """Record every client in every round."""
    return None


class RecordingStrategy(StrategyWrapper):
    """Records each round's global model and the chosen clients' updates; the training goes on as without it.

    Below ``folder`` it writes what a run of ours does: ``round-0000/global.safetensors`` and
    ``round-0000/update-<client>.safetensors`` (:class:`ModelUpdate`). Where ``folder`` is the arm's folder of a run
    directory, ``shadow-defense audit RUN`` finds them; else ``--global`` and ``--update`` take the two files.

    Outermost of all wrappers it sees what the server sees. A reply that is no update is named in the log and not
    recorded. It sees single updates only where nothing sums them before (secure aggregation).

    Args:
        names: of the clients, by partition: that of a reply is by its own word, where no other reply says the same.
        chosen: whom to record in a round; rounds of which nobody is chosen are not recorded.
        first_round: rounds before this Flower run, where it goes on with an earlier one.
        withheld: the global model's own values of the tensors that stay with the clients (``share_bn``) and are never
            sent: with them the recorded global model is whole, and the updates say that they lack them.
    """

    def __init__(
        self,
        inner: Strategy,
        folder: Path,
        *,
        names: Sequence[str] = (),
        chosen: Chosen = everyone,
        first_round: int = 0,
        withheld: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(inner)
        self.folder, self.names, self.chosen, self.first_round = folder, tuple(names), chosen, first_round
        self.withheld = dict(withheld or {})
        self._first: dict[str, Tensor] = {}
        self._sent: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        given = dict(arrays.to_torch_state_dict())
        # A strategy may have averaged integers to floating-point numbers: the types are those of the start.
        self._first = self._first or given
        self._sent = in_types_of(given, self._first)
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        # May be one-shot, and the strategy wants to read it too.
        replies = list(replies)
        round = self.first_round + server_round - 1
        chosen = self.chosen(round)
        if chosen is None or len(chosen):
            self._record(round, replies, chosen)
        return self.inner.aggregate_train(server_round, replies)

    def _record(self, round: int, replies: Sequence[Message], chosen: Collection[str] | None) -> None:
        write_tensors(round_folder(self.folder, round) / "global.safetensors", {**self.withheld, **self._sent})
        for sender, reply in zip(senders_of(replies, self.names), replies, strict=True):
            if chosen is not None and sender not in chosen:
                continue
            try:
                update = replace(
                    update_of(reply, self._sent, round, sender=sender), withheld=tuple(sorted(self.withheld))
                )
                update.save(update_path(self.folder, round, sender))
            except UpdateError as error:
                log.warning("round %d: not recorded: %s", round + 1, error)
