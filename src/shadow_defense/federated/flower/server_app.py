"""A ServerApp that does what the server does in one process: FedAvg, evaluation, a journal; resumable by rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from shadow_defense.data.dataset import FederatedDataset
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import ConfigError, RunError
from shadow_defense.federated.batch_norm_policy import evaluable_state, withheld_names
from shadow_defense.federated.flower.averaging import UpdateAveraging
from shadow_defense.federated.flower.checked_strategy import CheckedStrategy
from shadow_defense.federated.flower.client_app import FIRST_ROUND
from shadow_defense.federated.flower.recording_strategy import RecordingStrategy
from shadow_defense.federated.flower.records import from_record, to_record
from shadow_defense.federated.flower.sampling_strategy import SamplingStrategy
from shadow_defense.federated.sampling import taking_part
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import in_types_of, on_host
from shadow_defense.federated.training_folder import read_journal, state_folder, train_again, write_journal
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.progress import Task

Evaluate = Callable[[nn.Module], dict[str, Any]]


ROUND_TIMEOUT = 3600.0
"""Seconds that a server waits for the clients of a round, if not told otherwise: Flower's own patience."""


def no_measurements(round: int) -> dict[str, Any]:
    """What the server knows of the clients' own measurements where they are on other machines: nothing."""
    return {}


@dataclass
class FlowerServer:
    """The server's side of a training on Flower.

    Attributes:
        model: as every client and the server start it.
        dataset: its clients' names, by partition, and its public images, are all that is looked at here.
        keep: for each round (0-based) to be attacked, the clients whose updates are recorded.
        folder: where rounds and the journal are written, as the in-process engine does.
        at_least: clients without whose updates a round stops the training.
        strategy: what averages; with ``clients_per_round`` it is shown the nodes of a round's clients only.
        seed: of the draw of a round's clients.
        measured: after a round (0-based), what goes into the journal beside the evaluation.
        timeout: seconds to wait for the clients of a round, which goes on without the others then; None: for ever, for
            simulations only: of a SuperNode that is killed and comes back SuperLink still expects the answer to
            what it had been asked, and that never comes.
    """

    model: nn.Module
    dataset: FederatedDataset
    settings: TrainingSettings
    evaluate: Evaluate
    folder: Path
    keep: Mapping[int, Collection[str]] = field(default_factory=dict)
    share_bn: SharedBatchNorm = "all"
    at_least: int = 1
    strategy: Strategy | None = None
    seed: int = 0
    measured: Callable[[int], Mapping[str, Any]] = no_measurements
    timeout: float | None = ROUND_TIMEOUT
    task: Task = field(default_factory=Task)

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise ConfigError(f"the server's timeout is {self.timeout}: expected seconds, or None to wait for ever")

    def run(self, grid: Grid) -> None:
        """Go on from the last whole round to the end.

        Raises:
            RunError: where the journal or the state is damaged, or too few clients sent an update.
        """
        initial = {name: tensor.clone() for name, tensor in on_host(self.model.state_dict()).items()}
        rounds_done, history = read_journal(self.folder)
        state = self._resumed(rounds_done, initial) if rounds_done else initial
        self.task.advance(rounds_done)
        withheld = {name: initial[name] for name in sorted(withheld_names(self.model, self.share_bn))}
        strategy = self.build_strategy(rounds_done, withheld)
        started = time.perf_counter()

        def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            nonlocal started
            if server_round == 0:
                return None
            round = rounds_done + server_round - 1
            averaged = from_record(arrays, initial, "the averaged model", withheld)
            now = {**initial, **in_types_of(averaged, initial)}
            entry = {"round": round, **self.measured(round), "seconds": time.perf_counter() - started}
            if self.settings.evaluates_after(round):
                self.model.load_state_dict(self._evaluable(now))
                entry.update(self.evaluate(self.model))
            write_tensors(state_folder(self.folder, round + 1) / "global.safetensors", now)
            history.append(entry)
            write_journal(self.folder, round + 1, history)
            self.task.advance(note=f"loss {entry['loss']:.3f}" if "loss" in entry else "")
            started = time.perf_counter()
            return None

        if rounds_done < self.settings.rounds:
            strategy.start(
                grid,
                to_record({name: tensor for name, tensor in state.items() if name not in withheld}),
                num_rounds=self.settings.rounds - rounds_done,
                # None waits for ever, which the annotation does not say.
                timeout=self.timeout,  # type: ignore[arg-type, unused-ignore]
                train_config=ConfigRecord({FIRST_ROUND: rounds_done}),
                evaluate_fn=after_round,
            )

    def build_strategy(self, rounds_done: int, withheld: Mapping[str, Tensor]) -> Strategy:
        """What asks the clients and averages, and records what the server sees.

        Args:
            rounds_done: before this Flower run, which counts from 1 again.
            withheld: the global model's own values of what stays with the clients.
        """
        names = tuple(client.name for client in self.dataset.clients)
        per_round = self.settings.clients_per_round
        strategy = self.strategy or UpdateAveraging(len(names) if per_round is None else per_round)
        if per_round is not None:
            strategy = SamplingStrategy(
                strategy,
                chosen=lambda round: taking_part(len(names), per_round, seed=self.seed, round=round),
                first_round=rounds_done,
                timeout=self.timeout,
            )
        return RecordingStrategy(
            CheckedStrategy(strategy, names=names, at_least=self.at_least),
            self.folder,
            names=names,
            chosen=lambda round: self.keep.get(round, ()),
            first_round=rounds_done,
            withheld=withheld,
        )

    def _evaluable(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return evaluable_state(self.model, state, self.share_bn, self.settings.batch_norm, self.dataset)

    def _resumed(self, rounds_done: int, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
        path, hint = state_folder(self.folder, rounds_done) / "global.safetensors", train_again(self.folder)
        state, _ = read_tensors(path, hint)
        if {name: tensor.shape for name, tensor in state.items()} != {n: t.shape for n, t in initial.items()}:
            raise RunError(f"{path} is of another model; {hint}")
        return state


def build_server_app(server: Callable[[Context], FlowerServer]) -> ServerApp:
    """The ServerApp that trains as ``server`` says."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server(context).run(grid)

    return app
