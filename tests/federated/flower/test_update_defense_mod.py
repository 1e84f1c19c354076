"""The mod: the same update as with the defense in the training loop, around a training that knows nothing of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from tests.federated.flower import sites
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import Tensor

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.gaussian_mechanism import gaussian_epsilon
from shadow_defense.defenses.kind import Resources
from shadow_defense.defenses.local_dp import LocalDPSettings
from shadow_defense.errors import DefenseError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.refusal import WITHHELD
from shadow_defense.federated.flower.update_defense_mod import UpdateDefenseMod
from shadow_defense.federated.site_secret import secret_seed
from shadow_defense.folder_lock import holding

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


def made(
    defense: str, run: str = "training", mod: Mapping[str, Any] | None = None, **settings: Any
) -> UpdateDefenseMod:
    chosen = DefenseSettings(defense=defense, **settings)
    return UpdateDefenseMod(chosen, sites.build, run=run, rounds=sites.SETTINGS.rounds, **(mod or {}))


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
        node = f"partition-{site_of(reply)}"
        seed = secret_seed(tmp_path, "training", node)
        resources = Resources(None, sites.NORMALISATION, data.public, 2, node, seed)
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


def test_each_site_draws_its_own(tmp_path: Path) -> None:
    noise = []
    for place in ("a", "b", "a-again"):
        grid = train(made("noise", options={"place": "update"}), tmp_path / place)
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


def reply_with(spoil: Callable[[RecordDict], None]) -> Callable[..., Message]:
    """A mod behind the defense: what a training, or a mod of a user's, puts beside the model."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply = call_next(message, context)
        spoil(reply.content)
        return reply

    return mod


def one_round(states: Path, *mods: Any, settings: DefenseSettings | None = None, **given: Any) -> Message:
    """The answer of site 0 to a first round, with mods behind the defense."""
    chosen = settings or DefenseSettings(defense="local-dp")
    defending = UpdateDefenseMod(chosen, sites.build, run="training", rounds=3, **given)
    inner = app(None)

    def training(message: Message, context: Context) -> Message:
        for mod in reversed(mods):
            return mod(message, context, inner)
        return inner(message, context)

    outer = ClientApp()
    outer.train(mods=[defending])(training)
    grid = InProcessGrid(outer, 1, {"state-dir": str(states)})
    state = sites.build().state_dict()
    content = {"arrays": ArrayRecord(state), "config": ConfigRecord({"server-round": 1})}
    if given.get("scaffold_learning_rate"):
        content["control-variate"] = ArrayRecord({name: torch.zeros_like(state[name]) for name in TRAINED})
    return grid.answer(Message(RecordDict(content), dst_node_id=100, message_type="train"))


TRAINED = [name for name, _ in sites.build().named_parameters()]

LEAKS: dict[str, Callable[[RecordDict], None]] = {
    "a second set of tensors": lambda content: content.update({"c": ArrayRecord({"w": torch.ones(3)})}),
    "a control variate": lambda content: content.update({"control-variate": ArrayRecord({"w": torch.ones(3)})}),
    "an empty set of tensors": lambda content: content.update({"c": ArrayRecord()}),
    "a list": lambda content: content["metrics"].update({"gradient": [0.1, 0.2]}),
    "a metric that nobody named": lambda content: content["metrics"].update({"train_loss": 0.123456789}),
    "a second set of metrics": lambda content: content.update({"more": MetricRecord({"num-examples": 3})}),
    "bytes": lambda content: content.update({"state": ConfigRecord({"weights": b"raw"})}),
    "a list in a configuration": lambda content: content.update({"state": ConfigRecord({"weights": [0.1, 0.2]})}),
    "a word": lambda content: content.update({"state": ConfigRecord({"patient": "Miller"})}),
    "a number of images in floating point": lambda content: content["metrics"].update({"num-examples": 3.25}),
    "a number of images that is a list": lambda content: content["metrics"].update({"num-examples": [3, 4]}),
    "a number of images beyond all": lambda content: content["metrics"].update({"num-examples": 2**62}),
    "a negative number of steps": lambda content: content["metrics"].update({"steps": -1}),
    "another's partition": lambda content: content["metrics"].update({"partition-id": 2**60 + 17}),
    "no model": lambda content: content.pop("arrays"),
    "a tensor more": lambda content: content["arrays"].update({"raw": next(iter(content["arrays"].values()))}),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_nothing_leaves_beside_what_is_protected(leak: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reply = one_round(tmp_path, reply_with(LEAKS[leak]))
    assert reply.has_error() and not reply.has_content()
    assert reply.error.reason == "update withheld: UpdateError; see the client's log"
    states = ClientStateFolder(tmp_path, "training", "partition-0")
    assert (states.refusal() or "").startswith("client 'partition-0': update withheld: UpdateError:")
    assert "update withheld" in caplog.text
    last = states.last()
    assert last is not None and last.round == -1, "and nothing is spent"


def test_an_answer_of_the_trainings_own_is_no_way_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(message: Message, context: Context, call_next: Any) -> Message:
        return Message(Error(code=7, reason="image 17 of patient Miller"), reply_to=message)

    reply = one_round(tmp_path, fails)
    assert "Miller" not in str(reply.error) and reply.error.code == WITHHELD and "Miller" in caplog.text


def test_an_errors_class_tells_nothing_either(tmp_path: Path) -> None:
    def fails(message: Message, context: Context, call_next: Any) -> Message:
        raise type("PatientMiller", (Exception,), {})

    assert "Miller" not in str(one_round(tmp_path, fails).error)


def test_what_leaves_is_written_anew(tmp_path: Path) -> None:
    """No bytes behind a tensor's own, no name of a record, no metric to more digits than it needs."""

    def hide(content: RecordDict) -> None:
        for array in content["arrays"].values():
            array.data += b"the raw update"
        content["patient Miller"] = content.pop("metrics")
        content["patient Miller"]["train_loss"] = 0.123456789

    refused = one_round(tmp_path / "hidden", reply_with(hide), metrics=["train_loss"])
    assert refused.has_error(), "bytes that are no tensor's"

    def rename(content: RecordDict) -> None:
        content["patient Miller"] = content.pop("metrics")
        content["patient Miller"]["train_loss"] = 0.123456789

    reply = one_round(tmp_path / "renamed", reply_with(rename), metrics=["train_loss"])
    assert set(reply.content) == {"arrays", "metrics"}
    assert dict(reply.content["metrics"]) == {"num-examples": 4, "partition-id": 0, "train_loss": 0.123}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    spoil = reply_with(lambda content: content["metrics"].update({"loss": value}))
    assert one_round(tmp_path, spoil, metrics=["loss"]).has_error()


def test_a_round_asked_again_is_answered_by_what_left_then(tmp_path: Path) -> None:
    """A training on an accelerator comes to another update each time: equal draws under both would cancel."""

    def other(content: RecordDict) -> None:
        state = content["arrays"].to_torch_state_dict()
        content["arrays"] = ArrayRecord({name: tensor + 1 for name, tensor in state.items()})
        content["metrics"]["num-examples"] = 99

    first = one_round(tmp_path)
    again = one_round(tmp_path, reply_with(other))
    assert again.content["arrays"] == first.content["arrays"] and again.content["metrics"] == first.content["metrics"]
    last = ClientStateFolder(tmp_path, "training", "partition-0").last()
    assert last is not None and int(last.defense["releases"]) == 1


def flat(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([state[name].double().flatten() for name in TRAINED])


def test_scaffold_tells_no_more_than_the_protected_update(tmp_path: Path) -> None:
    """The control variate leaves as computed from the model that leaves: by hand -(y - x) / (K eta) with c = 0."""
    start = sites.build().state_dict()
    raw = one_round(tmp_path / "raw", settings=DefenseSettings(defense="none")).content["arrays"].to_torch_state_dict()
    stepped = reply_with(lambda content: content["metrics"].update({"steps": 4}))
    reply = one_round(tmp_path / "protected", stepped, scaffold_learning_rate=0.1)
    assert set(reply.content) == {"arrays", "metrics", "control-variate"}
    sent, changed = (reply.content[name].to_torch_state_dict() for name in ("arrays", "control-variate"))
    torch.testing.assert_close(flat(changed), -(flat(sent) - flat(start)) / 0.4, rtol=1e-5, atol=1e-6)
    true = flat(raw) - flat(start)
    of_update, of_variate = (
        float(torch.cosine_similarity(each, true, dim=0)) for each in (flat(sent) - flat(start), flat(changed))
    )
    assert of_variate == pytest.approx(-of_update, abs=1e-6) and abs(of_variate) < 0.5
    kept = ClientStateFolder(tmp_path / "protected", "training", "partition-0").last()
    assert kept is not None
    torch.testing.assert_close(flat(kept.control), flat(changed))


def test_scaffold_goes_on_from_the_clients_own_variate(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def look(message: Message, context: Context, call_next: Any) -> Message:
        seen.append(message.content["own-control-variate"].to_torch_state_dict())
        reply = call_next(message, context)
        reply.content["metrics"]["steps"] = 4
        return reply

    mod = UpdateDefenseMod(DefenseSettings(defense="none"), sites.build, run="t", rounds=3, scaffold_learning_rate=0.1)
    outer = ClientApp()
    outer.train(mods=[mod])(lambda message, context: look(message, context, app(None)))
    grid = InProcessGrid(outer, 1, {"state-dir": str(tmp_path)})
    state, changes = sites.build().state_dict(), []
    for round in (1, 2):
        content = {
            "arrays": ArrayRecord(state),
            "config": ConfigRecord({"server-round": round}),
            "control-variate": ArrayRecord({name: torch.full_like(state[name], 0.5 * (round - 1)) for name in TRAINED}),
        }
        reply = grid.answer(Message(RecordDict(content), dst_node_id=100, message_type="train"))
        after = reply.content["arrays"].to_torch_state_dict()
        changes.append(flat(reply.content["control-variate"].to_torch_state_dict()))
        expected = -0.5 * (round - 1) - (flat(after) - flat(state)) / 0.4
        torch.testing.assert_close(changes[-1], expected, rtol=1e-4, atol=1e-5)
        state = after
    assert not flat(seen[0]).any()
    torch.testing.assert_close(flat(seen[1]), changes[0])
    last = ClientStateFolder(tmp_path, "t", "partition-0").last()
    assert last is not None
    torch.testing.assert_close(flat(last.control), changes[0] + changes[1])


def test_without_its_steps_or_the_servers_variate_scaffold_sends_nothing(tmp_path: Path) -> None:
    assert one_round(tmp_path / "steps", scaffold_learning_rate=0.1).has_error()
    mod = UpdateDefenseMod(DefenseSettings(defense="none"), sites.build, run="t", rounds=3, scaffold_learning_rate=0.1)
    grid = InProcessGrid(app(mod), 1, {"state-dir": str(tmp_path)})
    content = {"arrays": ArrayRecord(sites.build().state_dict()), "config": ConfigRecord({"server-round": 1})}
    assert grid.answer(Message(RecordDict(content), dst_node_id=100, message_type="train")).has_error()


def test_two_nodes_of_one_folder_draw_differently(tmp_path: Path) -> None:
    def site(message: Message, context: Context, call_next: Any) -> Message:
        del context.node_config["partition-id"]
        return call_next(message, context)

    grid = InProcessGrid(app(None), 2, {"state-dir": str(tmp_path)})
    start = sites.build().state_dict()
    mod = made("noise", options={"place": "update"})

    @(outer := ClientApp()).train(mods=[site, mod])
    def unchanged(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    grid.app = outer
    noise = []
    for node in (100, 101):
        content = RecordDict({"arrays": ArrayRecord(start), "config": ConfigRecord({"server-round": 1})})
        reply = grid.answer(Message(content, dst_node_id=node, message_type="train"))
        noise.append(flat(reply.content["arrays"].to_torch_state_dict()) - flat(start))
    assert noise[0].norm() > 0 and abs(float(torch.cosine_similarity(*noise, dim=0))) < 0.2
    assert len(list((tmp_path / "secrets").iterdir())) == 2


def test_two_processes_do_not_train_as_one_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as other, holding(ClientStateFolder(tmp_path, "training", "partition-0").folder):
        assert other.submit(one_round, tmp_path).result().has_error()
    assert "is in use by process" in caplog.text
    assert one_round(tmp_path).has_content()


def test_a_sites_budget_ends_what_leaves(tmp_path: Path) -> None:
    """A budget between what one round and two rounds of local DP spend, by the exact Gaussian mechanism."""
    settings = LocalDPSettings()
    one, two = (gaussian_epsilon(2 * n**0.5 / settings.sigma(), settings.delta) for n in (1, 2))
    budget = round((one + two) / 2, 3)
    grid = InProcessGrid(app(made("local-dp")), 3, {"state-dir": str(tmp_path), "epsilon-budget": budget})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(sites.build().state_dict()), num_rounds=2)
    assert [reply.has_error() for reply in grid.replies] == [False] * 3 + [True] * 3
    assert {reply.error.code for reply in grid.replies[3:]} == {WITHHELD}
    folder = tmp_path / "training" / "partition-0"
    assert f"the site's budget is {budget:g}" in (folder / "withheld.txt").read_text()
    # Asked again, what left is told again: it costs nothing.
    assert not grid.answer(grid.sent[0]).has_error()


def test_a_budget_refuses_a_defense_without_epsilon(tmp_path: Path) -> None:
    mod = made("noise", options={"place": "update"})
    grid = InProcessGrid(app(mod), 3, {"state-dir": str(tmp_path), "epsilon-budget": 8.0})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(sites.build().state_dict()), num_rounds=1)
    assert {reply.error.code for reply in grid.replies} == {WITHHELD}
