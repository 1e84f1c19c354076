"""The server's side: Flower's SecAgg+ workflow as a strategy, which gets the average of a round and no update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common import FitIns, Parameters, parameters_to_ndarrays
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from torch import Tensor

from shadow_defense.errors import ConfigError, RunError, UpdateError
from shadow_defense.federated.flower.records import ARRAYS, to_record
from shadow_defense.federated.flower.secure_aggregation.client_app import MOST_IMAGES
from shadow_defense.federated.flower.secure_aggregation.fixed_point import LEVELS, FixedPoint, power_of_two_from
from shadow_defense.federated.flower.secure_aggregation.masks import MODULUS, use_own_masks
from shadow_defense.federated.flower.server_app import FlowerServer
from shadow_defense.federated.server import apply_update
from shadow_defense.federated.training_folder import round_folder, update_path
from shadow_defense.federated.update import ALL_CLIENTS, ModelUpdate
from shadow_defense.files import write_tensors

log = getLogger("shadow_defense.federated.flower")


@dataclass
class SecureServer(FlowerServer):
    """A :class:`FlowerServer` that is shown averages only, and records them where it would record single updates.

    Attributes:
        most_images: of any one client; the nearer to the truth, the finer the sum.
    """

    most_images: int = 1024

    def build_strategy(self, rounds_done: int, withheld: Mapping[str, Tensor]) -> Strategy:
        if self.strategy is not None:
            raise ConfigError("secure aggregation averages by itself: leave the server's strategy out")
        if self.settings.clients_per_round is not None:
            raise ConfigError(
                "secure aggregation sums over all clients in every round and training.clients_per_round is "
                f"{self.settings.clients_per_round}: leave it out, or take another engine"
            )
        return SecureAggregation(
            clients=len(self.dataset.clients),
            at_least=self.at_least,
            most_images=power_of_two_from(self.most_images),
            timeout=self.timeout,
            folder=self.folder,
            chosen=lambda round: bool(self.keep.get(round)),
            first_round=rounds_done,
            withheld=withheld,
        )


class SecureAggregation(Strategy):
    """FedAvg over all clients by Flower's SecAgg+ (Bell et al. 2020; Flower's ``SecAggPlusWorkflow``).

    A round takes four exchanges: keys, shares of keys, masked updates, shares of the masks. Clients that fail in the
    third, where they train, are left out, as long as more than half of all remain; one that fails in the first two
    stops the training. In both cases no update is unmasked.

    Args:
        clients: all that take part, at least two.
        at_least: masked updates without which nothing is unmasked and the training stops.
        most_images: of one client, a power of two.
        timeout: seconds to wait for each exchange; None: for ever.
        folder, chosen: below ``folder``, of the rounds (0-based) that are ``chosen``, the global model and the average
            are written, as the update of :data:`ALL_CLIENTS`: all that the server sees.
        first_round, withheld: as in :class:`RecordingStrategy`.
    """

    def __init__(
        self,
        *,
        clients: int,
        most_images: int,
        at_least: int = 1,
        timeout: float | None = None,
        folder: Path,
        chosen: Callable[[int], bool],
        first_round: int = 0,
        withheld: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.fixed_point = FixedPoint(clients, most_images)
        # More than half, or a server that lies to one half of the clients could unmask; see check_setup.
        self.threshold = clients // 2 + 1
        self.at_least, self.timeout = max(at_least, self.threshold), timeout
        self.folder, self.chosen, self.first_round = folder, chosen, first_round
        self.withheld = dict(withheld or {})
        self._after: ArrayRecord | None = None

    def summary(self) -> None:
        log.info("secure aggregation (SecAgg+) over %d clients", self.fixed_point.clients)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The whole round, since it takes more than the one exchange that a strategy is asked for.

        Raises:
            RunError: where fewer than ``at_least`` clients sent a masked update, or the rest cannot be unmasked.
        """
        round, sent = self.first_round + server_round - 1, dict(arrays.to_torch_state_dict())
        config = ConfigRecord({**config, "server-round": server_round, MOST_IMAGES: self.fixed_point.most_images})
        average = self._average(server_round, RecordDict({ARRAYS: arrays, "config": config}), grid, sent, round)
        if self.chosen(round):
            write_tensors(round_folder(self.folder, round) / "global.safetensors", {**self.withheld, **sent})
            recorded = replace(average, withheld=tuple(sorted(self.withheld)))
            recorded.save(update_path(self.folder, round, ALL_CLIENTS))
        self._after = to_record(apply_update(sent, average.tensors))
        return []

    def _average(
        self, server_round: int, content: RecordDict, grid: Grid, sent: Mapping[str, Tensor], round: int
    ) -> ModelUpdate:
        use_own_masks()
        nodes, _ = sample_nodes(grid, self.fixed_point.clients, self.fixed_point.clients)
        exchanges, received = _Exchanges(self, content), _Received(nodes, grid)
        try:
            exchanges(grid, _legacy_context(server_round, received))
            if received.total is None:
                raise UpdateError(f"{exchanges.shortage()}: {exchanges.reasons() or 'no client answered in time'}")
            return self.fixed_point.decode(received.total, sent, round)
        except RunError:
            raise
        except Exception as error:
            # Whatever a client sent in place of keys, shares or a row, Flower's protocol takes as it comes. Under masks
            # nobody can be left out: there is no sum then.
            what = f"a reply lacks {error}" if isinstance(error, KeyError) else error
            raise RunError(f"round {server_round} of this Flower run, by secure aggregation: {what}") from error

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return self._after, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Clients are not asked: their own loss and accuracy would come in the clear."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None


class _Exchanges(SecAggPlusWorkflow):
    """Flower's four exchanges, with our message where clients train, and an end before too small a sum."""

    def __init__(self, strategy: SecureAggregation, content: RecordDict) -> None:
        super().__init__(
            # Every client holds a share of every other one's secrets.
            num_shares=1.0,
            reconstruction_threshold=strategy.threshold,
            max_weight=1.0,
            clipping_range=strategy.fixed_point.limit,
            quantization_range=LEVELS,
            modulus_range=MODULUS,
            timeout=strategy.timeout,
        )
        self.content, self.clients, self.at_least = content, strategy.fixed_point.clients, strategy.at_least
        self.state = WorkflowState()

    def shortage(self) -> str:
        """What there was too little of."""
        masked = len(self.state.legacy_results)
        if masked < self.at_least:
            return f"{masked} clients sent a masked update, at least {self.at_least} are needed"
        return f"too few clients helped to unmask the sum of {masked}"

    def reasons(self) -> str:
        """Why clients failed; Flower notes some errors twice."""
        found = {str(getattr(failure.args[0], "reason", failure)) for failure in self.state.failures}
        return "; ".join(sorted(" ".join(each.split()) for each in found))

    def setup_stage(self, grid: Grid, context: LegacyContext, state: WorkflowState) -> bool:
        self.state = state
        return super().setup_stage(grid, context, state)

    def share_keys_stage(self, grid: Grid, context: LegacyContext, state: WorkflowState) -> bool:
        # Nobody holds a share of those who left before, without which Flower's clients fail in the last exchange.
        return super().share_keys_stage(grid, context, state) and len(state.active_node_ids) == self.clients

    def collect_masked_vectors_stage(self, grid: Grid, context: LegacyContext, state: WorkflowState) -> bool:
        # In a record of its own each, since Flower adds what is for one client only.
        state.nid_to_fitins = {node: RecordDict(dict(self.content)) for node in state.nid_to_fitins}
        enough = super().collect_masked_vectors_stage(grid, context, state)
        return enough and len(state.legacy_results) >= self.at_least


class _Received(LegacyStrategy):
    """What Flower's workflow asks of a strategy: which nodes to ask, and where to put the sum."""

    def __init__(self, nodes: Iterable[int], grid: Grid) -> None:
        self.nodes, self.grid = list(nodes), grid
        self.total: np.ndarray | None = None

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        return [(GridClientProxy(node, self.grid, 0), FitIns(Parameters([], ""), {})) for node in self.nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        # All weights are 1, so that what the workflow gives is the mean; every result holds it.
        self.total = parameters_to_ndarrays(results[0][1].parameters)[0] * len(results)
        return None, {}

    def initialize_parameters(self, client_manager: Any) -> None: ...

    def configure_evaluate(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        return []

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
        return None, {}

    def evaluate(self, server_round: int, parameters: Parameters) -> None: ...


def _legacy_context(server_round: int, strategy: LegacyStrategy) -> LegacyContext:
    state = RecordDict(
        {
            MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: server_round}),
            MAIN_PARAMS_RECORD: ArrayRecord(),
        }
    )
    return LegacyContext(Context(run_id=0, node_id=0, node_config={}, state=state, run_config={}), strategy=strategy)
