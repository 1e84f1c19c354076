"""Rounds of some of the clients: who takes part, what it costs, and what rests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.federated.three_sites import SIZES, build, dataset, evaluate, shadow

from shadow_defense.defenses.base import Defense
from shadow_defense.errors import ConfigError
from shadow_defense.federated import rounds
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.sampling import taking_part
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.training_folder import state_folder
from shadow_defense.files import read_tensors

ROUNDS = 5


def federation(folder: Path, per_round: int | None, defenses: Mapping[str, Defense] | None = None) -> Federation:
    settings = TrainingSettings(rounds=ROUNDS, learning_rate=0.1, clients_per_round=per_round)
    made = defenses or {name: Defense() for name in SIZES}
    return Federation(build(), dataset(), made, settings, F.cross_entropy, evaluate, seed=0, folder=folder)


def drawn(round: int, per_round: int) -> list[str]:
    return [f"site-{number + 1}" for number in taking_part(len(SIZES), per_round, seed=0, round=round)]


@given(st.integers(1, 40), st.data(), st.integers(0, 2**40), st.integers(0, 1000))
def test_so_many_clients_take_part_each_at_most_once(clients: int, data: st.DataObject, seed: int, round: int) -> None:
    per_round = data.draw(st.integers(1, clients))
    found = taking_part(clients, per_round, seed=seed, round=round)
    assert len(found) == per_round and list(found) == sorted(set(found)) and set(found) <= set(range(clients))
    assert taking_part(clients, None, seed=seed, round=round) == tuple(range(clients))


def test_every_client_is_drawn_equally_often() -> None:
    """400 draws of 3 out of 10: 120 each, with a standard deviation of sqrt(400 * 0.3 * 0.7) = 9.2."""
    count = Counter(number for round in range(400) for number in taking_part(10, 3, seed=7, round=round))
    assert sorted(count) == list(range(10))
    assert all(abs(often - 120) < 4.5 * 9.2 for often in count.values())


def test_more_clients_than_there_are_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clients_per_round=4 and there are 3 clients"):
        federation(tmp_path, 4).run()


def test_the_work_of_a_round_is_that_of_its_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, prepared, written = list[str](), list[str](), list[str]()
    train, prepare, write = rounds.train_locally, rounds.prepare_defense, rounds.write_tensors

    def counted_training(model: Any, state: Any, client: Any, *arguments: Any, **named: Any) -> Any:
        trained.append(client.name)
        return train(model, state, client, *arguments, **named)

    def counted_preparing(defense: Any, client: Any, *arguments: Any) -> None:
        prepared.append(client.name)
        prepare(defense, client, *arguments)

    def counted_writing(path: Path, *arguments: Any) -> None:
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(rounds, "train_locally", counted_training)
    monkeypatch.setattr(rounds, "prepare_defense", counted_preparing)
    monkeypatch.setattr(rounds, "write_tensors", counted_writing)
    made = federation(tmp_path, 1)
    made.run()
    assert trained == [name for round in range(ROUNDS) for name in drawn(round, 1)]
    assert len(set(trained)) > 1
    assert sorted(prepared) == sorted(set(trained))
    # The global model and one client's state in every round.
    assert written.count("global.safetensors") == ROUNDS and len(written) == 2 * ROUNDS
    for entry, name in zip(made.history, trained, strict=True):
        assert list(entry["clients"]) == [name]
        assert entry["loss"] == entry["clients"][name]["loss"]


def test_who_rests_keeps_its_state_and_a_stopped_training_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    straight = federation(tmp_path / "straight", 2, {name: shadow(name) for name in SIZES})
    stopped = federation(tmp_path / "stopped", 2, {name: shadow(name) for name in SIZES})
    whole, states = stopped.run_round, dict[str, bytes]()

    def killed(round: int) -> dict[str, Any]:
        for path in state_folder(tmp_path / "stopped", round).glob("defense-*"):
            name = path.stem.removeprefix("defense-")
            if round and name not in drawn(round - 1, 2):
                assert path.read_bytes() == states[name]
            states[name] = path.read_bytes()
        if round == 3:
            raise KeyboardInterrupt
        return whole(round)

    stopped.run_round = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    straight.run()
    resumed = federation(tmp_path / "stopped", 2, {name: shadow(name) for name in SIZES})
    resumed.run()
    assert resumed.rounds_done == ROUNDS
    for name, tensor in straight.global_state.items():
        assert torch.equal(tensor, resumed.global_state[name])
    last = [state_folder(tmp_path / kind, ROUNDS) for kind in ("straight", "stopped")]
    assert sorted(path.name for path in last[0].iterdir()) == sorted(path.name for path in last[1].iterdir())
    for path in last[0].iterdir():
        ours, theirs = read_tensors(path)[0], read_tensors(last[1] / path.name)[0]
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_trainings_from_before_clients_were_drawn_stay_what_they_are() -> None:
    """Run directories and cells are told apart by what is written of their settings."""
    assert "clients_per_round" not in TrainingSettings().model_dump(mode="json")
    some = TrainingSettings(clients_per_round=2)
    assert TrainingSettings.model_validate_json(some.model_dump_json()) == some
