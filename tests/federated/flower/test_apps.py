"""ClientApp and ServerApp: the same numbers as in one process, and nothing leaves when anything goes wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from tests.federated.flower import sites
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import Tensor

from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import DefenseError, RunError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.client_app import Participant, build_client_app
from shadow_defense.federated.flower.refusal import WITHHELD
from shadow_defense.federated.training_folder import round_folder, state_folder
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_json, read_tensors


def final(folder: Path) -> dict[str, Tensor]:
    return read_tensors(state_folder(folder, sites.SETTINGS.rounds) / "global.safetensors")[0]


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", sites.DEFENSES)
def test_the_same_global_model_as_in_one_process(name: str, tmp_path: Path) -> None:
    expected = sites.in_one_process(tmp_path / "one", sites.DEFENSES[name])
    sites.on_flower(tmp_path / "flower", sites.DEFENSES[name])
    assert_same(final(tmp_path / "flower"), expected)
    # What an attack reads is the same too.
    for file in ("round-0000/update-site-1", "round-0000/update-site-3", "round-0002/update-site-2"):
        ours, theirs = (ModelUpdate.load(tmp_path / engine / f"{file}.safetensors") for engine in ("one", "flower"))
        assert_same(ours.tensors, theirs.tensors)
        for fact in ("samples", "steps", "round", "client", "withheld"):
            assert getattr(ours, fact) == getattr(theirs, fact)
    for round in (0, 2):
        ours, theirs = (
            read_tensors(round_folder(tmp_path / engine, round) / "global.safetensors")[0]
            for engine in ("one", "flower")
        )
        assert_same(ours, theirs)
    assert not round_folder(tmp_path / "flower", 1).exists()
    kept = [sorted(file.name for file in (tmp_path / engine / "round-0002").glob("u*")) for engine in ("one", "flower")]
    assert kept == [["update-site-2.safetensors"]] * 2


@pytest.mark.parametrize("policy", ["parameters", "stats", "none"])
def test_what_of_batch_norm_stays_never_leaves(policy: SharedBatchNorm, tmp_path: Path) -> None:
    expected = sites.in_one_process(tmp_path / "one", sites.PLAIN, policy)
    grid = sites.on_flower(tmp_path / "flower", sites.PLAIN, policy)
    assert_same(final(tmp_path / "flower"), expected)
    withheld = withheld_names(sites.build(), policy)
    assert withheld
    for message in grid.sent + grid.replies:
        assert not withheld & set(message.content["arrays"])
    for place in ("round-0000/update-site-1", "round-0002/update-site-2"):
        ours, theirs = (ModelUpdate.load(tmp_path / engine / f"{place}.safetensors") for engine in ("one", "flower"))
        assert ours.withheld == theirs.withheld == tuple(sorted(withheld))
        assert_same(ours.tensors, theirs.tensors)


def test_single_precision_differs_by_rounding_only(tmp_path: Path) -> None:
    """As in a deployment, where double precision would double the upload."""
    expected = sites.in_one_process(tmp_path / "one", sites.PLAIN)
    grid = sites.on_flower(tmp_path / "flower", sites.PLAIN, client={"exact": False})
    for name, tensor in final(tmp_path / "flower").items():
        assert tensor.dtype == expected[name].dtype
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    assert {str(array.dtype) for array in grid.replies[0].content["arrays"].values()} == {"float32", "int64"}


def test_beside_its_tensors_a_client_says_three_numbers(tmp_path: Path) -> None:
    """Not the loss, nor what the defense measured: the norm before noise is as private as the update."""
    grid = sites.on_flower(tmp_path, sites.named("local-dp"))
    for reply in grid.replies:
        assert set(reply.content) == {"arrays", "metrics"}
        assert set(reply.content["metrics"]) == {"num-examples", "steps", "partition-id"}
    measured = ClientStateFolder(tmp_path / "clients", "run", "site-1").measurements()
    assert {"loss", "norm", "epsilon_spent"} <= measured.keys()


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """The server is killed after the clients have trained round 2 and before its journal says so."""
    defense = sites.named("local-dp")
    sites.on_flower(tmp_path / "straight", defense)

    def killed(round: int) -> dict[str, Any]:
        if round == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        sites.on_flower(tmp_path / "stopped", defense, measured=killed)
    assert read_json(tmp_path / "stopped" / "history.json")["rounds_done"] == 1
    grid = sites.on_flower(tmp_path / "stopped", defense)
    assert len(grid.sent) == 2 * len(sites.SIZES)
    assert_same(final(tmp_path / "straight"), final(tmp_path / "stopped"))
    # The round that was asked twice was spent once.
    straight, stopped = (
        ClientStateFolder(tmp_path / run / "clients", "run", "site-1") for run in ("straight", "stopped")
    )
    assert straight.measurements() == stopped.measurements()
    last = stopped.last()
    assert last is not None and int(last.defense["releases"]) == 3


def test_a_round_asked_again_gives_the_same_update_and_with_another_model_none(tmp_path: Path) -> None:
    grid = sites.on_flower(tmp_path, sites.named("local-dp"))
    asked, given = grid.sent[-1], grid.replies[-1]
    assert grid.answer(asked).content["arrays"] == given.content["arrays"]
    assert grid.answer(asked).content["arrays"] == given.content["arrays"]
    other = copy.deepcopy(asked)
    state = dict(other.content["arrays"].to_torch_state_dict())
    first = next(iter(state))
    state[first] = state[first] + 1
    other.content["arrays"] = ArrayRecord(state)
    for refused in (other, grid.sent[0]):
        # Another model, or a round that is over.
        reply = grid.answer(refused)
        assert reply.has_error() and reply.error.code == WITHHELD
    last = ClientStateFolder(tmp_path / "clients", "run", "site-3").last()
    assert last is not None and last.round == 2 and int(last.defense["releases"]) == 3
    assert grid.answer(asked).content["arrays"] == given.content["arrays"]


SECRET = "image 17 of patient Miller"


class Refusing(Defense):
    """Fails in round 2, at a place of choice."""

    def __init__(self, place: str) -> None:
        self.place = place

    def _maybe(self, place: str, context: RoundContext) -> None:
        if place == self.place and context.round == 1:
            raise DefenseError(SECRET) if place == "batch" else ZeroDivisionError(SECRET)

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        self._maybe("batch", context)
        return batch

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        self._maybe("update", context)
        return tensors


@pytest.mark.parametrize("place", ["batch", "update"])
def test_a_defense_that_raises_uploads_nothing_and_says_why_at_home_only(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def defense(site: str) -> Defense:
        return Refusing(place) if site == "site-2" else Defense()

    grid = sites.on_flower(tmp_path, defense)
    failed = [reply for reply in grid.replies if reply.has_error()]
    assert len(failed) == 1 and failed[0].metadata.src_node_id == 101
    assert not failed[0].has_content()
    assert SECRET not in str(failed[0].error) and "update withheld" in str(failed[0].error.reason)
    assert SECRET in caplog.text
    # The others go on without it, and it takes part again in the next round.
    assert read_json(tmp_path / "history.json")["rounds_done"] == 3
    assert sorted(reply.metadata.src_node_id for reply in grid.replies[-3:] if reply.has_content()) == [100, 101, 102]
    last = ClientStateFolder(tmp_path / "clients", "run", "site-2").last()
    assert last is not None and last.round == 2


def test_where_all_must_answer_one_refusal_stops_the_training_with_its_round(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 2 of this Flower run has 2 usable updates.*DefenseError"):
        sites.on_flower(tmp_path, lambda site: Refusing("batch" if site == "site-2" else ""), at_least=3)
    assert read_json(tmp_path / "history.json")["rounds_done"] == 1
    refusal = ClientStateFolder(tmp_path / "clients", "run", "site-2").refusal()
    assert refusal is not None and SECRET in refusal
    assert ClientStateFolder(tmp_path / "clients", "run", "site-1").refusal() is None


class Diverging(Defense):
    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        return {name: tensor * float("nan") for name, tensor in tensors.items() if tensor.is_floating_point()} | {
            name: tensor for name, tensor in tensors.items() if not tensor.is_floating_point()
        }


def test_an_update_that_is_not_finite_is_withheld(tmp_path: Path) -> None:
    grid = sites.on_flower(tmp_path, lambda site: Diverging() if site == "site-2" else Defense())
    assert [reply.metadata.src_node_id for reply in grid.replies if reply.has_error()] == [101] * 3
    assert all(torch.isfinite(tensor).all() for tensor in final(tmp_path).values())


def test_a_damaged_state_withholds_that_clients_update_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    defense = sites.named("local-dp")

    def damage(round: int) -> dict[str, Any]:
        if round == 0:
            (tmp_path / "clients" / "run" / "site-2" / "round-000000.safetensors").write_bytes(b"half a file")
        return {}

    grid = sites.on_flower(tmp_path, defense, measured=damage)
    assert [reply.metadata.src_node_id for reply in grid.replies if reply.has_error()] == [101, 101]
    assert "round-000000.safetensors" in caplog.text and "restore it from a copy" in caplog.text
    for site in ("site-1", "site-3"):
        last = ClientStateFolder(tmp_path / "clients", "run", site).last()
        assert last is not None and int(last.defense["releases"]) == 3


def test_another_defenses_state_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = sites.on_flower(tmp_path, sites.PLAIN, settings=sites.SETTINGS.model_copy(update={"rounds": 1}))
    other = InProcessGrid(
        build_client_app(sites.participants(tmp_path / "clients", sites.named("local-dp"))), len(sites.SIZES)
    )
    message = copy.deepcopy(grid.sent[0])
    message.content["config"]["server-round"] = 2
    assert other.answer(message).has_error()
    assert "is of another defense: it lacks 'releases'" in caplog.text


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Message:
    """What a server sends a client in the first round."""
    return sites.on_flower(tmp_path_factory.mktemp("asked"), sites.PLAIN).sent[0]


@pytest.mark.parametrize("wrong", ["shape", "missing", "unexpected", "no round", "late round"])
def test_a_message_that_does_not_fit_is_refused(wrong: str, asked: Message, tmp_path: Path) -> None:
    message = copy.deepcopy(asked)
    state = dict(message.content["arrays"].to_torch_state_dict())
    name = next(iter(state))
    if wrong == "shape":
        state[name] = state[name].flatten()
    if wrong == "missing":
        del state[name]
    if wrong == "unexpected":
        state["another"] = torch.zeros(1)
    message.content["arrays"] = ArrayRecord(state)
    if wrong == "no round":
        del message.content["config"]["server-round"]
    if wrong == "late round":
        message.content["config"]["server-round"] = 4
    fresh = InProcessGrid(build_client_app(sites.participants(tmp_path / "fresh", sites.PLAIN)), len(sites.SIZES))
    reply = fresh.answer(message)
    assert reply.has_error() and reply.error.code == WITHHELD
    assert not list((tmp_path / "fresh").rglob("*.safetensors"))


def test_a_server_of_another_model_is_named(tmp_path: Path) -> None:
    sites.on_flower(tmp_path, sites.PLAIN)
    history = read_json(tmp_path / "history.json")
    assert history["rounds_done"] == 3 and all("sum" in entry for entry in history["history"])
    (state_folder(tmp_path, 3) / "global.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"state-0003/global\.safetensors"):
        sites.on_flower(tmp_path, sites.PLAIN)


def test_a_client_in_the_place_of_another_sends_nothing(tmp_path: Path) -> None:
    """Two nodes that were given one partition and one folder: the second would draw the first one's noise."""
    grid = sites.on_flower(tmp_path, sites.named("local-dp"))
    given = sites.participants(tmp_path / "clients", sites.named("local-dp"))

    def in_its_place(context: Context) -> Participant:
        made, other = given(context), sites.dataset().clients[1]
        return replace(made, client=replace(other, name=made.client.name))

    other = InProcessGrid(build_client_app(in_its_place), len(sites.SIZES))
    asked = [message for message in grid.sent if message.metadata.dst_node_id == 100][-1]
    assert grid.answer(asked).has_content() and other.answer(asked).has_error()
