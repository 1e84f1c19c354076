"""What a client sends where anything goes wrong, or where it is asked for more than a sum: nothing."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.serverapp.strategy import FedAvg
from tests.federated.flower import sites
from tests.federated.flower.in_process_grid import start
from tests.federated.flower.secure_aggregation.secure_sites import (
    STAGES,
    SecureGrid,
    by_secure_aggregation,
    secure_grid,
    secure_server,
)
from tests.federated.three_sites import SIZES, dataset
from torch import Tensor

from shadow_defense.defenses.base import Defense, RoundContext
from shadow_defense.errors import DefenseError, RunError, ShadowDefenseError
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.refusal import WITHHELD
from shadow_defense.federated.flower.secure_aggregation.client_app import build_secure_client_app
from shadow_defense.federated.flower.server_app import build_server_app
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_json

PLAIN = sites.named("none")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SecureGrid:
    return by_secure_aggregation(tmp_path_factory.mktemp("done"), PLAIN)


@pytest.fixture
def summed(done: SecureGrid) -> SecureGrid:
    """After a training, with all messages that passed: clients that may be asked again."""
    grid = copy.copy(done)
    grid.contexts = copy.deepcopy(done.contexts)
    return grid


class Refusing(Defense):
    """Fails in round 2, or sends what is too large for the sum."""

    def __init__(self, how: str) -> None:
        self.how = how

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        if context.round == 1 and self.how == "raises":
            raise DefenseError("image 17 of patient Miller")
        if context.round == 1 and self.how == "too large":
            return {name: tensor * 1e6 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        return tensors


@pytest.mark.parametrize(("how", "kind"), [("raises", "DefenseError"), ("too large", "UpdateError")])
def test_a_client_that_fails_is_left_out_and_sends_nothing(
    how: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def defense(site: str) -> Defense:
        return Refusing(how) if site == "site-2" else Defense()

    grid = by_secure_aggregation(tmp_path / "secure", defense, keep={1: tuple(SIZES)})
    failed = [reply for reply in grid.replies if reply.has_error()]
    assert len(failed) == 1 and failed[0].metadata.src_node_id == 101 and failed[0].error.code == WITHHELD
    assert not failed[0].has_content() and failed[0].error.reason == f"update withheld: {kind}; see the client's log"
    assert ("patient Miller" if how == "raises" else "does not fit a secure sum") in caplog.text
    assert read_json(tmp_path / "secure" / "history.json")["rounds_done"] == 3
    # The others' average, of 4 and 1 images; in the next round it takes part again.
    recorded = ModelUpdate.load(tmp_path / "secure" / "round-0001" / "update-all-clients.safetensors")
    assert recorded.samples == SIZES["site-1"] + SIZES["site-3"]
    assert len(grid.of_stage("unmask")) == 3 + 2 + 3


def test_where_all_must_answer_nothing_is_unmasked_without_one(tmp_path: Path) -> None:
    def defense(site: str) -> Defense:
        return Refusing("raises") if site == "site-2" else Defense()

    grid = secure_grid(tmp_path / "clients", defense)
    made = secure_server(tmp_path, at_least=3)
    with pytest.raises(
        RunError, match=r"round 2 .* 2 clients sent a masked update, at least 3 .* DefenseError"
    ) as raised:
        start(build_server_app(lambda context: made), grid)
    assert "\n" not in str(raised.value) and "Miller" not in str(raised.value)
    assert len(grid.of_stage("unmask")) == 3 and len(grid.of_stage("collect_masked_vectors")) == 6
    assert read_json(tmp_path / "history.json")["rounds_done"] == 1
    refusal = ClientStateFolder(tmp_path / "clients", "run", "site-2").refusal()
    assert refusal is not None and "Miller" in refusal


@pytest.mark.parametrize(("failing", "messages"), [("setup", 3), ("share_keys", 6), ("unmask", 12)])
def test_a_client_that_fails_in_another_exchange_stops_the_round_with_a_line(
    failing: str, messages: int, tmp_path: Path
) -> None:
    """Before the training nobody trains in vain; after it the others are enough to unmask, or nobody is."""

    class Failing(SecureGrid):
        def answer(self, message: Message) -> Message:
            if message.content[RECORD_KEY_CONFIGS]["stage"] == failing and message.metadata.dst_node_id != 100:
                message = copy.deepcopy(message)
                del message.content[RECORD_KEY_CONFIGS]["stage"]
            return super().answer(message)

    app = build_secure_client_app(sites.participants(tmp_path / "clients", PLAIN))
    grid, made = Failing(app, len(SIZES)), secure_server(tmp_path)
    line = "helped to unmask the sum of 3" if failing == "unmask" else "0 clients sent a masked update, at least 2"
    with pytest.raises(RunError, match=f"round 1 .*{line}.*UpdateError") as raised:
        start(build_server_app(lambda context: made), grid)
    assert "\n" not in str(raised.value)
    assert len(grid.replies) == messages
    assert not (tmp_path / "history.json").exists()


def test_a_server_that_asks_in_the_clear_gets_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = secure_grid(tmp_path / "clients", PLAIN)
    made = sites.server(tmp_path)
    with pytest.raises(RunError, match="0 usable updates"):
        start(build_server_app(lambda context: made), grid)
    assert all(reply.has_error() for reply in grid.replies)
    assert "use the same engine on both sides" in caplog.text
    assert not list((tmp_path / "clients").rglob("*.safetensors"))


def test_a_message_that_flower_would_not_mask_is_answered_by_nothing(
    summed: SecureGrid, caplog: pytest.LogCaptureFixture
) -> None:
    """Flower hands ``train.default`` to the same function as ``train``, past its own mod's look at the type."""
    reply = asked_again(summed, "collect_masked_vectors", kind="train.default")
    assert reply.has_error() and reply.error.code == WITHHELD and not reply.has_content()
    assert "'train.default'" in caplog.text


def asked_again(grid: SecureGrid, stage: str, kind: str = "train", **changes: Any) -> Message:
    """The reply of a client that has answered all stages before, to a changed message of the last round."""
    node = 100
    for earlier in STAGES[: STAGES.index(stage)]:
        for sent, _ in [pair for pair in grid.of_stage(earlier) if pair[0].metadata.dst_node_id == node][-1:]:
            grid.answer(sent)
    sent = [sent for sent, _ in grid.of_stage(stage) if sent.metadata.dst_node_id == node][-1]
    message = copy.deepcopy(sent)
    message.metadata.message_type = kind
    for key, value in changes.items():
        message.content[RECORD_KEY_CONFIGS][key] = value
    return grid.answer(message)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"threshold": 1}, "of which 1 are enough: expected .* more than half"),
        ({"share_num": 2}, "for 2 shares"),
        ({"sample_num": 1, "share_num": 1, "threshold": 1}, "asks 1 clients"),
        ({"mod_range": 2**16}, "asks for mod_range=65536"),
        ({"target_range": 2**22}, "asks for target_range=4194304"),
        ({"max_weight": 0.001}, "asks for max_weight=0.001"),
    ],
)
def test_a_weaker_protocol_is_refused(
    change: dict[str, Any], line: str, summed: SecureGrid, caplog: pytest.LogCaptureFixture
) -> None:
    assert not asked_again(summed, "setup").has_error()
    reply = asked_again(summed, "setup", **change)
    assert reply.has_error() and reply.error.code == WITHHELD
    assert any(re.search(line, record.getMessage()) for record in caplog.records)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"active_nids": [100, 101, 102], "dead_nids": [102]}, "that it answered and that it did not"),
        ({"active_nids": [100, 101], "dead_nids": [102]}, "over 3 clients already and is asked for again over 2"),
        # As many as before, of whom another one may have been gone then: three such sums give every update.
        ({"active_nids": [100, 101, 102], "dead_nids": [103]}, "asked for again over 3, with 1 gone"),
    ],
)
def test_no_client_helps_to_unmask_another_one(
    change: dict[str, Any], line: str, summed: SecureGrid, caplog: pytest.LogCaptureFixture
) -> None:
    # The last round's masked rows came, and the server lost its answers to the last message.
    for context in summed.contexts.values():
        state = context.state.config_records["secaggplus_state"]
        state["current_stage"] = "collect_masked_vectors"
    sent = [sent for sent, _ in summed.of_stage("unmask") if sent.metadata.dst_node_id == 100][-1]
    message = copy.deepcopy(sent)
    for key, value in change.items():
        message.content[RECORD_KEY_CONFIGS][key] = value
    reply = summed.answer(message)
    assert reply.has_error() and reply.error.code == WITHHELD
    assert line in caplog.text
    assert not summed.answer(sent).has_error()


def test_what_secure_aggregation_does_not_do_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    grid, data = secure_grid(tmp_path / "clients", PLAIN), dataset()
    some = sites.SETTINGS.model_copy(update={"clients_per_round": 2})
    for changes, line in (
        ({"dataset": replace(data, clients=data.clients[:1])}, "the average of one is its update"),
        ({"settings": some}, "sums over all clients in every round and training.clients_per_round is 2"),
        ({"strategy": FedAvg()}, "leave the server's strategy out"),
    ):
        made = secure_server(tmp_path, **changes)
        with pytest.raises(ShadowDefenseError, match=line):
            made.run(grid)
    assert not grid.sent


def words(reply: Message) -> None:
    reply.content[RECORD_KEY_CONFIGS]["pk1"] = "words"


def no_key(reply: Message) -> None:
    reply.content[RECORD_KEY_CONFIGS]["pk1"] = b""


def nothing(reply: Message) -> None:
    for name in list(reply.content):
        del reply.content[name]


def shares_for_strangers(reply: Message) -> None:
    reply.content[RECORD_KEY_CONFIGS]["dsts"] = [1, 2]


def broken_shares(reply: Message) -> None:
    reply.content[RECORD_KEY_CONFIGS]["ctxts"] = [b"x", b"y"]


def masked(value: Any) -> Callable[[Message], None]:
    def lie(reply: Message) -> None:
        reply.content[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS] = value

    return lie


def noise(reply: Message) -> None:
    """A row of the right length and type, which nobody can tell from a masked one before the sum."""
    config = reply.content[RECORD_KEY_CONFIGS]
    key = next(key for key, value in config.items() if isinstance(value, list))
    rows = [np.load(io.BytesIO(each)) for each in config[key]]
    drawn = [np.random.default_rng(0).integers(0, 2**48, row.shape, dtype=np.int64) for row in rows]
    config[key] = [ndarray_to_bytes(row) for row in drawn]


def wrong_shares(reply: Message) -> None:
    config = reply.content[RECORD_KEY_CONFIGS]
    key = next(key for key, value in config.items() if isinstance(value, list) and isinstance(value[0], bytes))
    config[key] = [bytes(len(each)) for each in config[key]]


@pytest.mark.parametrize(
    ("stage", "lie"),
    [
        *(("setup", each) for each in (words, no_key, nothing)),
        *(("share_keys", each) for each in (nothing, shares_for_strangers, broken_shares)),
        *(("collect_masked_vectors", each) for each in (nothing, noise, masked([b"\x93NUMPY"]), masked("words"))),
        *(("unmask", each) for each in (nothing, wrong_shares)),
    ],
)
def test_a_client_that_lies_under_masks_stops_the_sum_with_a_line(
    stage: str, lie: Callable[[Message], None], tmp_path: Path
) -> None:
    class Lying(SecureGrid):
        def answer(self, message: Message) -> Message:
            reply = super().answer(message)
            asked = message.content[RECORD_KEY_CONFIGS]["stage"]
            if asked == stage and message.metadata.dst_node_id == 101 and reply.has_content():
                lie(reply)
            return reply

    app = build_secure_client_app(sites.participants(tmp_path / "clients", PLAIN))
    grid, made = Lying(app, len(SIZES)), secure_server(tmp_path, at_least=3)
    with pytest.raises(RunError, match="round 1 of this Flower run, by secure aggregation") as raised:
        start(build_server_app(lambda context: made), grid)
    assert str(raised.value).isprintable()
    assert not (tmp_path / "history.json").exists()
