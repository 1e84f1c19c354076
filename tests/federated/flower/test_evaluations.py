"""What a client says of a model: in its own rounds, once, rounded, over enough images; by its app and by the mod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from tests.federated.flower import sites
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import Tensor

from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.client_app import Participant, build_client_app
from shadow_defense.federated.flower.refusal import WITHHELD
from shadow_defense.federated.flower.update_defense_mod import UpdateDefenseMod


def own_app(folder: Path, least: int) -> ClientApp:
    given = sites.participants(folder, sites.named("none"), least_evaluated=least)

    def participant(context: Context) -> Participant:
        made = given(context)
        # The sites of the tests have none of their own.
        client = ClientData(made.client.name, made.client.train, made.client.train, made.client.test, 2)
        return Participant(**{**vars(made), "client": client})

    return build_client_app(participant)


def with_mod(least: int) -> ClientApp:
    """Somebody else's client, that says more than it should."""
    mod = UpdateDefenseMod(
        DefenseSettings(defense="none"), sites.build, run="run", rounds=3, metrics=["loss"], least_evaluated=least
    )
    made = ClientApp()

    @made.train(mods=[mod])
    def train(message: Message, context: Context) -> Message:
        said = MetricRecord({"num-examples": 4})
        return Message(RecordDict({"arrays": message.content["arrays"], "m": said}), reply_to=message)

    @made.evaluate(mods=[mod])
    def evaluate(message: Message, context: Context) -> Message:
        content = RecordDict({"m": MetricRecord({"num-examples": 4, "loss": 0.123456789})})
        if "greedy" in message.content["config"]:
            content["features"] = ArrayRecord({"x": torch.ones(3)})
        return Message(content, reply_to=message)

    @made.query(mods=[mod])
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"images": 4})}), reply_to=message)

    return made


class Site:
    """Node 100, asked by hand."""

    def __init__(self, kind: str, folder: Path, least: int = 1) -> None:
        app = own_app(folder, least) if kind == "own" else with_mod(least)
        self.grid = InProcessGrid(app, 1, {"state-dir": str(folder)})

    def ask(self, what: str, round: int, shift: float = 0.0, **config: Any) -> Message:
        state: dict[str, Tensor] = dict(sites.build().state_dict())
        state = {name: each + shift if each.is_floating_point() else each for name, each in state.items()}
        content = {"arrays": ArrayRecord(state), "config": ConfigRecord({"server-round": round, **config})}
        return self.grid.answer(Message(RecordDict(content), dst_node_id=100, message_type=what))


KINDS = pytest.mark.parametrize("kind", ["own", "mod"])


@KINDS
def test_once_a_round_and_once_a_model(kind: str, tmp_path: Path) -> None:
    site = Site(kind, tmp_path)
    assert site.ask("evaluate", 1).has_error(), "before its first round"
    assert site.ask("train", 1).has_content()
    assert site.ask("evaluate", 2).has_error(), "another round"
    assert site.ask("evaluate", 1, 0.25).has_content()
    for shift in (0.25, 0.5):
        reply = site.ask("evaluate", 1, shift)
        assert reply.has_error() and reply.error.code == WITHHELD, "again, and another model in the same round"
    assert site.ask("train", 2).has_content()
    assert site.ask("evaluate", 2, 0.25).has_error(), "a model again, rounds later"
    assert site.ask("evaluate", 2, 0.5).has_content()
    # A process of its own for every message: nothing of this is in memory.
    assert Site(kind, tmp_path).ask("evaluate", 2, 0.75).has_error()


@KINDS
def test_over_too_few_images_nothing_is_said(kind: str, tmp_path: Path) -> None:
    site = Site(kind, tmp_path, least=5)
    assert site.ask("train", 1).has_content()
    reply = site.ask("evaluate", 1, 0.25)
    assert reply.has_error() and "images" not in str(reply.error)
    states = ClientStateFolder(tmp_path, "run", "site-1" if kind == "own" else "partition-0")
    assert "at least 5 are needed" in (states.refusal() or "")


def test_numbers_are_rounded(tmp_path: Path) -> None:
    site = Site("own", tmp_path)
    site.ask("train", 1)
    said = dict(site.ask("evaluate", 1, 0.25).content["metrics"])
    data, model = sites.dataset(), sites.build()
    state = {name: each + 0.25 if each.is_floating_point() else each for name, each in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()
    images = data.clients[0].train
    with torch.no_grad():
        logits = model(data.normalisation.apply(images.unit_images()))
    loss = float(F.cross_entropy(logits, images.labels))
    accuracy = float((logits.argmax(1) == images.labels).float().mean())
    assert said == {"num-examples": len(images), "loss": float(f"{loss:.3g}"), "accuracy": float(f"{accuracy:.3g}")}
    assert said["loss"] != loss


def test_the_mod_lets_nothing_else_out_of_an_evaluation(tmp_path: Path) -> None:
    site = Site("mod", tmp_path)
    site.ask("train", 1)
    assert site.ask("evaluate", 1, 0.25, greedy=True).has_error()
    # What was refused was not said: the round's one answer is still there.
    reply = site.ask("evaluate", 1, 0.5)
    assert set(reply.content) == {"metrics"}
    assert dict(reply.content["metrics"]) == {"num-examples": 4, "loss": 0.123}
    assert site.ask("query", 1).has_error(), "a metric that nobody named"


def test_a_message_type_with_an_action_is_no_way_around(tmp_path: Path) -> None:
    site = Site("mod", tmp_path)
    site.grid.app = (named := ClientApp())
    mod = UpdateDefenseMod(DefenseSettings(defense="none"), sites.build, run="run", rounds=3)

    @named.evaluate("probe", mods=[mod])
    def probe(message: Message, context: Context) -> Message:
        return Message(RecordDict({"x": ArrayRecord({"x": torch.ones(1)})}), reply_to=message)

    assert site.ask("evaluate.probe", 1).has_error()
