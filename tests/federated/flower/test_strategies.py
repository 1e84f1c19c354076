"""Wrappers around any strategy: the auditor changes nothing and writes what was sent; the check spoils nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, Strategy
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import Tensor

from shadow_defense.errors import RunError
from shadow_defense.federated.flower.checked_strategy import CheckedStrategy
from shadow_defense.federated.flower.recording_strategy import RecordingStrategy
from shadow_defense.federated.training_folder import round_folder
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors

START = {"weight": torch.tensor([[1.0, 2.0]]), "count": torch.tensor(4)}
ADDED = {100: (0.5, 1), 101: (-1.0, 2), 102: (0.5, 2)}
"""What each node adds to every weight, and to the counter."""
SAMPLES = {100: 1, 101: 1, 102: 2}

STRATEGIES = {
    "fedavg": FedAvg,
    "fedavgm": lambda **given: FedAvgM(server_learning_rate=0.5, server_momentum=0.5, **given),
    "fedadam": lambda **given: FedAdam(eta=0.1, **given),
    "fedmedian": FedMedian,
}


def app(spoil: Any = None) -> ClientApp:
    """A client of somebody else's, who sends ``server-round`` times what the table says."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        state = message.content["arrays"].to_torch_state_dict()
        weight, count = ADDED[context.node_id]
        round = int(message.content["config"]["server-round"])
        after = {"weight": state["weight"] + weight * round}
        if "count" in state:
            after["count"] = (state["count"] + count).long()
        metrics = {"num-examples": SAMPLES[context.node_id], "partition-id": context.node_config["partition-id"]}
        content = RecordDict({"arrays": ArrayRecord(after), "metrics": MetricRecord(metrics)})
        if spoil is not None:
            spoil(context.node_id, content)
        return Message(content, reply_to=message)

    return made


def fedavg(kind: Any = FedAvg) -> Strategy:
    return kind(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)


def train(
    strategy: Strategy, spoil: Any = None, rounds: int = 2, start: dict[str, Tensor] = START
) -> dict[str, Tensor]:
    grid = InProcessGrid(app(spoil), 3)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(dict(start)), num_rounds=rounds)
    return dict(result.arrays.to_torch_state_dict())


@pytest.mark.parametrize("name", STRATEGIES)
def test_recording_changes_nothing_whatever_the_strategy(name: str, tmp_path: Path) -> None:
    start = {"weight": START["weight"]}
    plain = train(fedavg(STRATEGIES[name]), start=start)
    recorded = train(RecordingStrategy(fedavg(STRATEGIES[name]), tmp_path), start=start)
    assert plain["weight"].dtype == recorded["weight"].dtype
    # Clients are sampled, and so added up, in a random order.
    torch.testing.assert_close(plain["weight"], recorded["weight"], rtol=1e-6, atol=0)
    assert not torch.equal(plain["weight"], start["weight"])
    assert len(list(tmp_path.rglob("update-*.safetensors"))) == 6


def test_what_is_recorded_is_what_each_client_added(tmp_path: Path) -> None:
    train(RecordingStrategy(fedavg(), tmp_path, names=("north", "south", "west")))
    for round, place in ((0, round_folder(tmp_path, 0)), (1, round_folder(tmp_path, 1))):
        for node, name in zip(ADDED, ("north", "south", "west"), strict=True):
            update = ModelUpdate.load(place / f"update-{name}.safetensors")
            weight, count = ADDED[node]
            assert torch.equal(update.tensors["weight"], torch.full((1, 2), weight * (round + 1)))
            assert update.tensors["count"].dtype == torch.int64
            # FedAvg alone averages the counter to 4 + 7/4, which the client truncates.
            assert int(update.tensors["count"]) == (count if round == 0 else count - 1)
            assert (update.samples, update.round, update.client) == (SAMPLES[node], round, name)
    before, _ = read_tensors(round_folder(tmp_path, 1) / "global.safetensors")
    # 1/4 * 0.5 - 1/4 * 1 + 1/2 * 0.5 = 1/8; the counter is 4 + 7/4, rounded.
    assert torch.equal(before["weight"], START["weight"] + 0.125) and int(before["count"]) == 6


def test_whom_to_record_is_asked_by_round_and_rounds_go_on(tmp_path: Path) -> None:
    chosen = {3: ("partition-1",), 4: ()}
    train(RecordingStrategy(fedavg(), tmp_path, chosen=lambda round: chosen[round], first_round=3))
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors"))
    assert written == ["round-0003/global.safetensors", "round-0003/update-partition-1.safetensors"]


def nan_of_101(node: int, content: RecordDict) -> None:
    if node == 101:
        content["arrays"] = ArrayRecord({**START, "weight": torch.tensor([[float("nan"), 1.0]])})


def other_model_of_101(node: int, content: RecordDict) -> None:
    if node == 101:
        content["arrays"] = ArrayRecord({"weight": torch.zeros(3)})


def no_samples_of_101(node: int, content: RecordDict) -> None:
    if node == 101:
        content["metrics"] = MetricRecord({"partition-id": 1})


@pytest.mark.parametrize("spoil", [nan_of_101, other_model_of_101, no_samples_of_101])
def test_a_reply_that_cannot_be_used_is_named_and_left_out(
    spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        final = train(RecordingStrategy(CheckedStrategy(fedavg()), tmp_path), spoil, rounds=1)
    # (0.5 * 1 + 0.5 * 2) / 3, and the counter 4 + round((1 + 2 * 2) / 3).
    torch.testing.assert_close(final["weight"], START["weight"] + 0.5)
    assert final["count"].dtype == torch.int64 and int(final["count"]) == 6
    assert "left out" in caplog.text and "partition-1" in caplog.text
    recorded = sorted(path.name for path in round_folder(tmp_path, 0).iterdir())
    assert recorded == ["global.safetensors", "update-partition-0.safetensors", "update-partition-2.safetensors"]


def test_counters_stay_whole_numbers_from_round_to_round(tmp_path: Path) -> None:
    plain, checked = train(fedavg()), train(CheckedStrategy(fedavg()))
    assert plain["count"].is_floating_point()
    # Twice round((1 + 2 + 2 * 2) / 4) = round(1.75).
    assert checked["count"].dtype == torch.int64 and int(checked["count"]) == 8
    assert checked["weight"].dtype == torch.float32


def test_without_enough_usable_updates_the_training_stops_with_the_reasons() -> None:
    with pytest.raises(RunError, match=r"has 2 usable updates, at least 3.*tensor 'weight'.*partition-1 holds NaN"):
        train(CheckedStrategy(fedavg(), at_least=3), nan_of_101)


class Silent(FedAvg):
    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        assert not list(replies)
        return None, None


def test_no_answer_at_all_is_said(tmp_path: Path) -> None:
    strategy = CheckedStrategy(Silent())
    grid = InProcessGrid(app(), 3)
    list(strategy.configure_train(1, ArrayRecord(dict(START)), ConfigRecord(), grid))
    with pytest.raises(RunError, match="no client answered in time"):
        strategy.aggregate_train(1, [])
