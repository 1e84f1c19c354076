"""FedAvg on Flower by the same sum as in one process."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from shadow_defense.federated.flower.records import SAMPLES, to_record
from shadow_defense.federated.flower.replies import update_of
from shadow_defense.federated.server import average_updates


class UpdateAveraging(FedAvg):
    """FedAvg (McMahan et al. 2017) over all ``nodes`` that it is shown, without evaluation by the clients.

    Departure from Flower's own, which averages models: the updates are, as in one process (``average_updates``). Of
    equal weights in theory, the two round ties to different sides in practice, and training amplifies that.
    """

    def __init__(self, nodes: int) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=nodes,
            min_available_nodes=nodes,
            weighted_by_key=SAMPLES,
        )
        self._sent: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._sent = dict(arrays.to_torch_state_dict())
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        average = average_updates([update_of(reply, self._sent, server_round - 1) for reply in replies])
        # In double precision, in which a model plus a small update loses nothing.
        return to_record({name: tensor.double() + average[name] for name, tensor in self._sent.items()}), None
