"""Federated rounds that can be stopped at any point and go on to the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.federated.stopping import killed_before
from tests.federated.three_sites import NORMALISATION, SIZES, build, dataset, evaluate, shadow
from torch import Tensor

from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.defenses.local_dp import LocalDPDefense, LocalDPSettings
from shadow_defense.errors import DefenseError, RunError
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.training_folder import kept_updates, round_folder, update_path
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_json, read_tensors

ROUNDS = 4


def shadows() -> dict[str, Defense]:
    return {name: shadow(name) for name in SIZES}


def plain() -> dict[str, Defense]:
    return {name: Defense() for name in SIZES}


def federation(folder: Path, defenses: Mapping[str, Defense] | None = None, **changes: Any) -> Federation:
    settings = TrainingSettings(**{"rounds": ROUNDS, "learning_rate": 0.1, "milestones": (2,), **changes})
    return Federation(
        build(),
        dataset(),
        defenses or plain(),
        settings,
        F.cross_entropy,
        evaluate,
        seed=0,
        folder=folder,
        keep={0: tuple(SIZES), 3: ("site-2",)},
    )


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("stop_before", [0, 1, 3])
@pytest.mark.parametrize("defenses", [plain, shadows])
def test_stopped_and_resumed_equals_unbroken(tmp_path: Path, defenses: Any, stop_before: int) -> None:
    straight = federation(tmp_path / "straight", defenses())
    straight.run()
    with pytest.raises(KeyboardInterrupt):
        killed_before(federation(tmp_path / "stopped", defenses()), stop_before).run()
    resumed = federation(tmp_path / "stopped", defenses())
    resumed.run()
    assert_same(straight.global_state, resumed.global_state)
    assert_same(straight.model.state_dict(), resumed.global_state)
    assert without_seconds(straight.history) == without_seconds(resumed.history)
    for place in ("round-0000", "round-0003", "state-0004"):
        names = sorted(each.name for each in (tmp_path / "straight" / place).iterdir())
        assert "global.safetensors" in names
        assert names == sorted(each.name for each in (tmp_path / "stopped" / place).iterdir())
        for name in names:
            ours, theirs = (read_tensors(tmp_path / run / place / name) for run in ("straight", "stopped"))
            assert_same(ours[0], theirs[0])
            assert ours[1] == theirs[1]


def test_a_kill_while_saving_keeps_the_previous_round(tmp_path: Path) -> None:
    """The next state's files are there, whole or half, but the journal does not name them yet."""
    straight = federation(tmp_path / "straight")
    straight.run()
    with pytest.raises(KeyboardInterrupt):
        killed_before(federation(tmp_path / "stopped"), 2).run()
    half = tmp_path / "stopped" / "state-0003"
    half.mkdir()
    (half / "global.safetensors").write_bytes(b"half")
    resumed = federation(tmp_path / "stopped")
    resumed.run()
    assert_same(straight.global_state, resumed.global_state)
    assert [each.name for each in (tmp_path / "stopped").glob("state-*")] == ["state-0004"]


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    federation(tmp_path).run()
    again = killed_before(federation(tmp_path), 0)
    again.run()
    assert again.rounds_done == ROUNDS and len(again.history) == ROUNDS


def test_a_round_is_the_weighted_average_of_its_clients(tmp_path: Path) -> None:
    made = federation(tmp_path)
    before = {name: tensor.clone() for name, tensor in made.global_state.items()}
    made.run_round(0)
    model, total = build(), sum(SIZES.values())
    for client in made.dataset.clients:
        alone = train_locally(
            model,
            before,
            client,
            Defense(),
            settings=made.settings,
            round=0,
            normalisation=NORMALISATION,
            loss_fn=F.cross_entropy,
            seed=0,
        )
        saved = ModelUpdate.load(round_folder(tmp_path, 0) / f"update-{client.name}.safetensors")
        # The same update whichever client went before, and the one that was written for the attacks.
        assert_same(saved.tensors, alone.update.tensors)
        assert saved.samples == SIZES[client.name]
    expected = {
        name: tensor.double()
        + sum(
            ModelUpdate.load(round_folder(tmp_path, 0) / f"update-{site}.safetensors").tensors[name].double() * count
            for site, count in SIZES.items()
        )
        / total
        for name, tensor in before.items()
        if tensor.is_floating_point()
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(made.global_state[name].double(), tensor, rtol=1e-6, atol=1e-7)
    written, _ = read_tensors(round_folder(tmp_path, 0) / "global.safetensors")
    assert_same(written, before)


@pytest.mark.slow
def test_history_weighs_losses_by_samples(tmp_path: Path) -> None:
    made = federation(tmp_path, shadows(), rounds=3, evaluate_every=2)
    made.run()
    assert read_json(tmp_path / "history.json") == {"rounds_done": 3, "history": made.history}
    assert ["sum" in entry for entry in made.history] == [False, True, True]
    for entry in made.history:
        weighted = sum(entry["clients"][name]["loss"] * count for name, count in SIZES.items())
        assert entry["loss"] == pytest.approx(weighted / sum(SIZES.values()))
        assert all(measured["noise_rms"] > 0 for measured in entry["clients"].values())


@pytest.mark.slow
def test_only_the_clients_asked_for_are_kept(tmp_path: Path) -> None:
    federation(tmp_path, shadows()).run()
    kept = {place: sorted(each.stem for each in (tmp_path / place).iterdir()) for place in ("round-0000", "round-0003")}
    pictures, updates = ([f"{kind}-site-{index}" for index in (1, 2, 3)] for kind in ("explanation", "update"))
    assert kept["round-0000"] == [*pictures, "global", *updates]
    assert kept["round-0003"] == ["explanation-site-2", "global", "update-site-2"]
    assert not (tmp_path / "round-0001").exists()


class Refusing(Defense):
    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        if context.round == 1:
            raise DefenseError("cannot protect this batch")
        return batch


def test_a_defense_that_fails_leaves_no_update(tmp_path: Path) -> None:
    made = federation(tmp_path, {**plain(), "site-3": Refusing()})
    made.keep = {1: tuple(SIZES)}
    with pytest.raises(DefenseError, match="cannot protect"):
        made.run()
    # Not even of the clients that came before it in the same round; round 0 stays in force.
    assert not list(tmp_path.glob("round-0001/*"))
    assert read_json(tmp_path / "history.json")["rounds_done"] == 1
    assert [each.name for each in tmp_path.glob("state-*")] == ["state-0001"]


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    federation(tmp_path).run()
    (tmp_path / "state-0004" / "global.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"state-0004/global\.safetensors"):
        federation(tmp_path).run()


def test_a_state_of_another_defense_is_named(tmp_path: Path) -> None:
    federation(tmp_path).run()
    defenses = {name: LocalDPDefense(LocalDPSettings(), 0) for name in SIZES}
    with pytest.raises(RunError, match=r"defense-site-1\.safetensors is of another defense: it lacks") as raised:
        federation(tmp_path, defenses).run()
    assert "\n" not in str(raised.value)


def test_a_clients_name_leads_nowhere(tmp_path: Path) -> None:
    for name in ("x/../../../escaped", "..", "St. Mary's", "y" * 5000):
        path = update_path(tmp_path / "arm", 0, name)
        assert path.parent == tmp_path / "arm" / "round-0000"
        ModelUpdate({"w": torch.ones(1)}, 1, 1, 0, name).save(path)
        assert (0, name) in kept_updates(tmp_path / "arm")
    assert [path.name for path in tmp_path.iterdir()] == ["arm"]
    assert len(kept_updates(tmp_path / "arm")) == 4
