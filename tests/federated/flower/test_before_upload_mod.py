"""The last look: what was not looked at does not leave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import Tensor, nn

from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import UpdateError
from shadow_defense.federated.flower.before_upload_mod import BeforeUploadMod
from shadow_defense.federated.flower.update_defense_mod import UpdateDefenseMod
from shadow_defense.federated.update import ModelUpdate

START = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}
SEEN: list[ModelUpdate] = []


def look(context: Context) -> Any:
    def check(update: ModelUpdate, received: Mapping[str, Tensor]) -> Mapping[str, float]:
        SEEN.append(update)
        return {}

    return check


def ask(*mods: Any, kind: str = "train", folder: Path | None = None, **beside: Any) -> Message:
    made = ClientApp(mods=list(mods))

    def answer(message: Message, context: Context) -> Message:
        if "error" in beside:
            return Message(Error(9, "patient Miller"), reply_to=message)
        said = {"num-examples": 2, "steps": 5, **beside.get("metrics", {})}
        after = ArrayRecord({name: tensor + 1 for name, tensor in START.items()})
        for array in after.values():
            array.data += beside.get("behind", b"")
        records = {"arrays": after, "metrics": MetricRecord(said), **beside.get("records", {})}
        if kind != "train":
            del records["arrays"]
        return Message(RecordDict(records), reply_to=message)

    made.train()(answer)
    made.evaluate()(answer)
    grid = InProcessGrid(made, 1, {} if folder is None else {"state-dir": str(folder)})
    control = {name: torch.full_like(tensor, 0.25) for name, tensor in START.items()}
    content = {"arrays": ArrayRecord(START), "config": ConfigRecord({"server-round": 1})}
    content["control-variate"] = ArrayRecord(control)
    return grid.answer(Message(RecordDict(content), dst_node_id=100, message_type=kind))


def test_what_it_has_seen_leaves_and_nothing_else() -> None:
    SEEN.clear()
    reply = ask(BeforeUploadMod(look, run="r", rounds=1))
    assert len(SEEN) == 1 and torch.equal(SEEN[0].tensors["bias"], torch.ones(1))
    assert {name: dict(record) for name, record in reply.content.metric_records.items()} == {
        "metrics": {"num-examples": 2, "steps": 5}
    }
    assert set(reply.content) == {"arrays", "metrics"}


@pytest.mark.parametrize(
    "beside",
    [
        {"records": {"c": ArrayRecord({"w": Array(torch.ones(2).numpy())})}},
        {"records": {"control-variate": ArrayRecord({"w": Array(torch.ones(2).numpy())})}},
        {"records": {"c": ConfigRecord({"x": b"raw"})}},
        {"metrics": {"loss": 0.5}},
        {"metrics": {"gradient": [0.5, 0.25]}},
        {"behind": b"the raw update"},
        {"error": True},
    ],
    ids=str,
)
def test_beside_the_update_nothing_leaves(beside: Any) -> None:
    reply = ask(BeforeUploadMod(look, run="r", rounds=1), **beside)
    assert reply.has_error() and "Miller" not in str(reply.error)


def test_nor_with_an_evaluation() -> None:
    mod = BeforeUploadMod(look, run="r", rounds=1, metrics=["loss"])
    assert set(ask(mod, kind="evaluate").content["metrics"]) == {"num-examples", "steps"}
    assert ask(mod, kind="evaluate", records={"x": ArrayRecord()}).has_error()
    # Nobody would count how often it is asked.
    assert ask(mod, kind="evaluate", metrics={"loss": 0.123456}).has_error()


@pytest.mark.parametrize("claims", ["builtins", "shadow_defense.errors"])
def test_the_name_of_anothers_error_does_not_leave(claims: str) -> None:
    named = type("Miller1970", (UpdateError if "shadow" in claims else ValueError,), {"__module__": claims})

    def raises(update: ModelUpdate, state: Any) -> dict[str, float]:
        raise named("the update")

    reply = ask(BeforeUploadMod(lambda context: raises, run="r", rounds=1))
    assert reply.error.reason == "update withheld: Exception; see the client's log"


def test_scaffolds_variate_is_that_of_the_update_it_has_seen(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Linear(2, 1)

    defense = UpdateDefenseMod(
        DefenseSettings(defense="local-dp"), model, run="r", rounds=1, scaffold_learning_rate=0.1
    )
    SEEN.clear()
    reply = ask(BeforeUploadMod(look, run="s", rounds=1, scaffold_learning_rate=0.1), defense, folder=tmp_path)
    changed = reply.content["control-variate"].to_torch_state_dict()
    for name, tensor in SEEN[0].tensors.items():
        # K = 5 and eta = 0.1: -c - U / 0.5.
        torch.testing.assert_close(changed[name], -0.25 - tensor / 0.5, rtol=1e-4, atol=1e-5)
