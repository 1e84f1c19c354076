"""The mod: the same update as with the defense in the training loop, around a training that knows nothing of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from tests.federated.flower import sites
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import Tensor

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.errors import DefenseError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.refusal import WITHHELD
from shadow_defense.federated.flower.update_defense_mod import UpdateDefenseMod

Spoil = Callable[[int, dict[str, Tensor]], None]


def app(mod: UpdateDefenseMod | None, spoil: Spoil | None = None) -> ClientApp:
    """A client of somebody else's: a plain training loop, here ours without a defense, that sends its whole state."""
    made = ClientApp()

    @made.train(mods=[] if mod is None else [mod])
    def train(message: Message, context: Context) -> Message:
        partition, round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
        data, model = sites.dataset(), sites.build()
        received = dict(message.content["arrays"].to_torch_state_dict())
        client = data.clients[partition]
        result = train_locally(
            model,
            received,
            client,
            Defense(),
            settings=sites.SETTINGS,
            round=round,
            normalisation=sites.NORMALISATION,
            loss_fn=F.cross_entropy,
            seed=0,
        )
        after = dict(model.state_dict())
        if spoil is not None:
            spoil(round, after)
        metrics = MetricRecord({"num-examples": result.update.samples, "partition-id": partition})
        return Message(RecordDict({"arrays": ArrayRecord(after), "metrics": metrics}), reply_to=message)

    return made


def train(mod: UpdateDefenseMod | None, states: Path, rounds: int = 1, spoil: Spoil | None = None) -> InProcessGrid:
    grid = InProcessGrid(app(mod, spoil), 3, {"state-dir": str(states)})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(sites.build().state_dict()), num_rounds=rounds)
    return grid


def made(defense: str, run: str = "training", seed: int | None = 5, **settings: Any) -> UpdateDefenseMod:
    return UpdateDefenseMod(
        DefenseSettings(defense=defense, **settings), sites.build, run=run, rounds=sites.SETTINGS.rounds, seed=seed
    )


def site_of(message: Message) -> int:
    return message.metadata.src_node_id - 100


@pytest.mark.parametrize(
    ("defense", "options"),
    [
        ("gradient-clipping", {"place": "update"}),
        ("gradient-sparsification", {"place": "update"}),
        ("local-dp", {}),
        ("noise", {"place": "update"}),
        ("clip+dp", {"clip": {"place": "update"}}),
    ],
)
def test_as_in_the_training_loop(defense: str, options: dict[str, Any], tmp_path: Path) -> None:
    grid = train(made(defense, options=options), tmp_path)
    settings = DefenseSettings(defense=defense, options=options)
    data = sites.dataset()
    plain = train(None, tmp_path)
    start = sites.build().state_dict()
    for reply in grid.replies:
        resources = Resources(None, sites.NORMALISATION, data.public, 2, f"partition-{site_of(reply)}", 5)
        expected = train_locally(
            sites.build(),
            start,
            data.clients[site_of(reply)],
            settings.build(resources),
            settings=sites.SETTINGS,
            round=0,
            normalisation=sites.NORMALISATION,
            loss_fn=F.cross_entropy,
            seed=0,
        ).update.tensors
        sent = reply.content["arrays"].to_torch_state_dict()
        assert sent.keys() == expected.keys()
        for name, tensor in expected.items():
            assert sent[name].dtype == start[name].dtype
            torch.testing.assert_close(sent[name], start[name] + tensor, rtol=1e-6, atol=1e-7)
    # Buffers leave as they are, parameters do not.
    undefended = {site_of(reply): reply.content["arrays"].to_torch_state_dict() for reply in plain.replies}
    for reply in grid.replies:
        sent = reply.content["arrays"].to_torch_state_dict()
        parameters = dict(sites.build().named_parameters())
        for name, tensor in undefended[site_of(reply)].items():
            assert (name in parameters) or torch.equal(sent[name], tensor), name
        assert any(not torch.equal(sent[name], undefended[site_of(reply)][name]) for name in parameters)


@pytest.mark.parametrize(
    ("defense", "options"), [("shadow", {}), ("soteria", {}), ("noise", {"place": "gradients"}), ("dp-sgd", {})]
)
def test_a_defense_that_needs_more_than_the_update_is_refused(defense: str, options: dict[str, Any]) -> None:
    with pytest.raises(DefenseError, match="cannot be a mod, which sees nothing but the update"):
        made(defense, options=options)


def test_the_budget_is_counted_over_rounds_and_a_round_asked_again_costs_nothing(tmp_path: Path) -> None:
    grid = train(made("local-dp"), tmp_path, rounds=2)
    asked, given = grid.sent[-1], grid.replies[-1]
    # A restarted SuperNode: nothing is in memory, and Flower's own context is new.
    again = InProcessGrid(app(made("local-dp")), 3, {"state-dir": str(tmp_path)})
    assert again.answer(asked).content["arrays"] == given.content["arrays"]
    other = copy.deepcopy(asked)
    other.content["arrays"] = ArrayRecord({name: each + 1 for name, each in sites.build().state_dict().items()})
    assert again.answer(other).error.code == WITHHELD
    for index in range(3):
        last = ClientStateFolder(tmp_path, "training", f"partition-{index}").last()
        assert last is not None and last.round == 1 and int(last.defense["releases"]) == 2


def test_without_a_seed_each_site_draws_its_own(tmp_path: Path) -> None:
    noise = []
    for place in ("a", "b", "a-again"):
        grid = train(made("noise", seed=None, options={"place": "update"}), tmp_path / place)
        reply = next(reply for reply in grid.replies if site_of(reply) == 0)
        noise.append(reply.content["arrays"].to_torch_state_dict()["classifier.weight"])
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


@pytest.mark.parametrize("policy", ["parameters", "stats", "none"])
def test_batch_norm_that_stays_is_kept_at_home_and_the_average_is_untouched(policy: Any, tmp_path: Path) -> None:
    grid = train(made("none", share_bn=policy), tmp_path, rounds=2)
    start, withheld = sites.build().state_dict(), withheld_names(sites.build(), policy)
    for reply in grid.replies:
        sent = reply.content["arrays"].to_torch_state_dict()
        for name in withheld:
            torch.testing.assert_close(sent[name].double(), start[name].double(), rtol=1e-6, atol=1e-6)
    states = [ClientStateFolder(tmp_path, "training", f"partition-{index}").last() for index in range(3)]
    for state in states:
        assert state is not None and state.own.keys() == withheld
        assert any(not torch.equal(state.own[name], start[name]) for name in withheld)
    if policy != "stats":
        # Two rounds of one, two and two batches: each goes on from its own counter.
        counters = [[int(t) for name, t in state.own.items() if name.endswith("tracked")] for state in states if state]
        assert [set(each) for each in counters] == [{4}, {4}, {2}]


def raising(round: int, state: dict[str, Tensor]) -> None:
    raise ValueError("image 17 of patient Miller")


def not_finite(round: int, state: dict[str, Tensor]) -> None:
    name = next(iter(state))
    state[name] = state[name] * float("inf")


@pytest.mark.parametrize("spoil", [raising, not_finite])
def test_whatever_goes_wrong_nothing_is_uploaded(
    spoil: Spoil, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = train(made("local-dp"), tmp_path, spoil=spoil)
    assert all(reply.has_error() and not reply.has_content() for reply in grid.replies)
    assert "Miller" not in "".join(str(reply.error) for reply in grid.replies)
    assert ("Miller" in caplog.text) == (spoil is raising)
    for index in range(3):
        last = ClientStateFolder(tmp_path, "training", f"partition-{index}").last()
        assert last is not None and last.round == -1 and int(last.defense["releases"]) == 0


def test_without_a_folder_from_the_site_nothing_is_uploaded(caplog: pytest.LogCaptureFixture) -> None:
    grid = InProcessGrid(app(made("local-dp")), 3)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(sites.build().state_dict()), num_rounds=1)
    assert all(reply.has_error() for reply in grid.replies)
    assert "start the SuperNode with --node-config 'state-dir=" in caplog.text
