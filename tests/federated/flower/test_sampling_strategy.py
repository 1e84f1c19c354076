"""Rounds of some of the clients on Flower: the same ones as in one process, and messages to no others."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from tests.federated.flower import sites
from tests.federated.flower.in_process_grid import InProcessGrid, start
from tests.federated.three_sites import shadow

from shadow_defense.errors import RunError
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower import sampling_strategy
from shadow_defense.federated.flower.client_app import build_client_app
from shadow_defense.federated.flower.server_app import build_server_app
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.sampling import taking_part
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.training_folder import state_folder
from shadow_defense.files import read_json, read_tensors

SETTINGS = TrainingSettings(rounds=4, learning_rate=0.1, milestones=(2,), clients_per_round=2)
DRAWN = [taking_part(3, 2, seed=0, round=round) for round in range(4)]


def of_type(messages: list[Message], kind: str) -> list[int]:
    """The clients that messages of a kind went to."""
    return [
        message.metadata.dst_node_id - 100 for message in messages if message.metadata.message_type.startswith(kind)
    ]


def trained(grid: InProcessGrid, partitions: Sequence[int] = (0, 1, 2)) -> list[tuple[int, ...]]:
    """The clients of each round, whatever the order in which Flower asks them."""
    asked = [partitions[number] for number in of_type(grid.sent, "train")]
    return [tuple(sorted(asked[begin : begin + 2])) for begin in range(0, len(asked), 2)]


@pytest.mark.slow
@pytest.mark.parametrize("defense", [sites.named("local-dp"), shadow], ids=["local-dp", "shadow"])
def test_the_same_clients_and_the_same_global_model_as_in_one_process(defense: Any, tmp_path: Path) -> None:
    alone = Federation(
        sites.build(),
        sites.dataset(),
        {name: defense(name) for name in sites.SIZES},
        SETTINGS,
        sites.F.cross_entropy,
        sites.evaluate,
        seed=0,
        folder=tmp_path / "one",
    )
    alone.run()
    grid = sites.on_flower(tmp_path / "flower", defense, client={"settings": SETTINGS}, settings=SETTINGS)
    found = read_tensors(state_folder(tmp_path / "flower", 4) / "global.safetensors")[0]
    for name, tensor in alone.global_state.items():
        assert torch.equal(found[name], tensor), name
    # Each node is asked once who it is, and then only those drawn train.
    assert sorted(of_type(grid.sent, "query")) == [0, 1, 2]
    assert trained(grid) == DRAWN
    # Of who rested, the last state is that of its own last round.
    for number, name in enumerate(sites.SIZES):
        last = max(round for round, drawn in enumerate(DRAWN) if number in drawn)
        assert ClientStateFolder(tmp_path / "flower" / "clients", "run", name).last_round() == last


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_with_the_same_clients(tmp_path: Path) -> None:
    def killed(round: int) -> dict[str, Any]:
        if round == 2:
            raise KeyboardInterrupt
        return {}

    changes: dict[str, Any] = {"client": {"settings": SETTINGS}, "settings": SETTINGS}
    sites.on_flower(tmp_path / "straight", sites.named("local-dp"), **changes)
    with pytest.raises(KeyboardInterrupt):
        sites.on_flower(tmp_path / "stopped", sites.named("local-dp"), measured=killed, **changes)
    assert read_json(tmp_path / "stopped" / "history.json")["rounds_done"] == 2
    grid = sites.on_flower(tmp_path / "stopped", sites.named("local-dp"), **changes)
    assert trained(grid) == DRAWN[2:]
    ours, theirs = (
        read_tensors(state_folder(tmp_path / kind, 4) / "global.safetensors")[0] for kind in ("straight", "stopped")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


class LateGrid(InProcessGrid):
    """The node of the third client is there from the third look on; that of the first does not say who it is."""

    looks = 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return [100, 101, 102, 103] if self.looks > 2 else [100, 101]

    def answer(self, message: Message) -> Message:
        if message.metadata.dst_node_id == 100:
            return Message(Error(code=2, reason="no such function"), reply_to=copy.deepcopy(message))
        return super().answer(message)


def test_nodes_that_come_late_are_waited_for_and_one_that_says_nothing_is_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_strategy.time, "sleep", lambda seconds: None)
    app = build_client_app(sites.participants(tmp_path / "clients", sites.named("none"), settings=SETTINGS))
    grid = LateGrid(app, 4)
    for node, partition in ((101, 2), (102, 0), (103, 1)):
        grid.contexts[node].node_config["partition-id"] = partition
    made = sites.server(tmp_path, settings=SETTINGS)
    start(build_server_app(lambda context: made), grid)
    asked = of_type(grid.sent, "query")
    # Of the first an answer may have been lost: it is asked again, as often as others are waited for.
    assert [asked.count(node) for node in (1, 2, 3)] == [1, 1, 1] and asked.count(0) > 1
    assert trained(grid, (-1, 2, 0, 1)) == DRAWN


def test_a_client_that_does_not_come_ends_the_training_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_strategy.time, "sleep", lambda seconds: None)
    app = build_client_app(sites.participants(tmp_path / "clients", sites.named("none"), settings=SETTINGS))
    grid = LateGrid(app, 2)
    monkeypatch.setattr(LateGrid, "looks", -10_000_000)
    made = sites.server(tmp_path, settings=SETTINGS, timeout=0.2)
    with pytest.raises(RunError, match=r"no node said within 0 s that it is client \d.*start it") as raised:
        start(build_server_app(lambda context: made), grid)
    assert "\n" not in str(raised.value) and not of_type(grid.sent, "train")
