"""One client of three that lies, in every way that a message allows: it is left out by name, and the round goes on."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import Tensor

from shadow_defense.errors import RunError
from shadow_defense.federated.flower.averaging import UpdateAveraging
from shadow_defense.federated.flower.checked_strategy import CheckedStrategy
from shadow_defense.federated.flower.recording_strategy import RecordingStrategy
from shadow_defense.federated.flower.sampling_strategy import SamplingStrategy
from shadow_defense.federated.training_folder import round_folder

START = {"weight": torch.tensor([[1.0, 2.0]]), "count": torch.tensor(4)}
ADDED = {100: 0.5, 101: -1.0, 102: 1.0}
NAMES = ("north", "south", "west")
LIAR = 101

Lie = Callable[[RecordDict], Any]


def raw(data: bytes, *, shape: tuple[int, ...] = (1, 2), stype: str = "numpy.ndarray", dtype: str = "float32") -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def saved(array: np.ndarray, **given: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **given)
    return file.getvalue()


def header(text: str) -> bytes:
    """An .npy file of a header of its own, and eight bytes of data."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(8)


def weight(value: Any) -> Lie:
    """Another array for the weight, as NumPy or Flower writes it."""
    array = value if isinstance(value, Array) else Array(np.asarray(value))
    return lambda content: content["arrays"].update({"weight": array})


def count(value: Any) -> Lie:
    return lambda content: content["arrays"].update({"count": Array(np.asarray(value))})


def says(**said: Any) -> Lie:
    return lambda content: content["metrics"].update({name.replace("_", "-"): value for name, value in said.items()})


def without(record: str, key: str | None = None) -> Lie:
    return lambda content: content.pop(record) if key is None else content[record].pop(key)


F32 = np.float32
LIES: dict[str, Lie] = {
    "NaN": weight(np.array([[np.nan, 1]], F32)),
    "infinity": weight(np.array([[np.inf, 1]], F32)),
    "minus infinity": weight(np.array([[1, -np.inf]], F32)),
    "beyond single precision": weight(np.array([[1e300, 1]])),
    "a square beyond single precision": weight(np.array([[1e30, 1]], F32)),
    "the largest number": weight(np.array([[3e38, -3e38]], F32)),
    "another shape": weight(np.zeros((2, 1), F32)),
    "another rank": weight(np.zeros(2, F32)),
    "a scalar": weight(np.zeros((), F32)),
    "an empty array": weight(np.zeros((0, 2), F32)),
    "a larger array": weight(np.zeros((1000, 2), F32)),
    "whole numbers for weights": weight(np.ones((1, 2), np.int64)),
    "truth values for weights": weight(np.ones((1, 2), bool)),
    "complex numbers": weight(np.ones((1, 2), np.complex64)),
    "text": weight(np.array([["a", "b"]])),
    "bytes as elements": weight(np.array([[b"a", b"b"]])),
    "dates": weight(np.array([["2026-01-01", "2026-01-02"]], "datetime64[D]")),
    "records": weight(raw(saved(np.zeros((1, 2), [("a", "f4"), ("b", "f4")])))),
    "objects": weight(raw(saved(np.array([[{}, {}]], dtype=object), allow_pickle=True))),
    "objects by the header alone": weight(raw(header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }\n"))),
    "no bytes": weight(raw(b"")),
    "bytes that are no array": weight(raw(b"\x00" * 64)),
    "half an array": weight(raw(saved(np.zeros((1, 2), F32))[:-3])),
    "bytes behind the array": weight(raw(saved(np.zeros((1, 2), F32)) + b"more")),
    "a header cut short": weight(raw(b"\x93NUMPY\x01\x00\xff\xff{")),
    "a header that is code": weight(raw(header("__import__('os').system('touch /tmp/never')\n"))),
    "a header of 10^11 elements": weight(
        raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }\n"))
    ),
    "a header of 10^11 elements that says our shape": weight(
        raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 200000000000), }\n"))
    ),
    "a header of negative elements": weight(
        raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, -2), }\n"))
    ),
    "a format of the future": weight(raw(b"\x93NUMPY\x09\x00" + bytes(64))),
    "an archive": weight(raw(b"PK\x03\x04" + bytes(64))),
    "a pickle": weight(raw(b"\x80\x04\x95" + bytes(64))),
    "another serialisation": weight(raw(saved(np.zeros((1, 2), F32)), stype="torch.pickle")),
    "no serialisation": weight(raw(saved(np.zeros((1, 2), F32)), stype="")),
    "a counter that is NaN": count(np.array(np.nan)),
    "a counter that is infinite": count(np.array(np.inf)),
    "a counter near its limit": count(np.array(2**62)),
    "a counter below its limit": count(np.array(-(2**62))),
    "a counter that is a row": count(np.array([4, 4])),
    "no arrays": without("arrays"),
    "an empty set of arrays": lambda content: content.update({"arrays": ArrayRecord()}),
    "two sets of arrays": lambda content: content.update({"again": content["arrays"]}),
    "a tensor less": without("arrays", "count"),
    "a tensor more": lambda content: content["arrays"].update({"other": Array(np.zeros(1))}),
    "a tensor by another name": lambda content: content["arrays"].update({"w\x1b[2J": content["arrays"].pop("weight")}),
    "no metrics": without("metrics"),
    "an empty set of metrics": lambda content: content.update({"metrics": MetricRecord()}),
    "no number of images": without("metrics", "num-examples"),
    "NaN images": says(num_examples=float("nan")),
    "infinitely many images": says(num_examples=float("inf")),
    "minus infinitely many images": says(num_examples=float("-inf")),
    "no images": says(num_examples=0),
    "fewer than no images": says(num_examples=-5),
    "half an image": says(num_examples=1.5),
    "more images than there are": says(num_examples=2**63 - 1),
    "more images than a float can count": says(num_examples=1e300),
    "a list of images": says(num_examples=[1, 2]),
    "NaN steps": says(steps=float("nan")),
    "infinitely many steps": says(steps=float("inf")),
    "fewer than no steps": says(steps=-1),
    "more steps than there are": says(steps=2**62),
    "a list of steps": says(steps=[1]),
    "an empty content": lambda content: [content.pop(name) for name in list(content)],
    "nothing but a configuration": lambda content: (
        [content.pop(name) for name in list(content)],
        content.update({"c": ConfigRecord({"x": b"y"})}),
    ),
}

HARMLESS: dict[str, Lie] = {
    "a NaN partition": says(partition_id=float("nan")),
    "an infinite partition": says(partition_id=float("inf")),
    "a negative partition": says(partition_id=-1),
    "a partition that is not": says(partition_id=2**40),
    "a list of partitions": says(partition_id=[1, 2]),
    "another's partition": says(partition_id=0),
    "a NaN loss": says(train_loss=float("nan")),
    "a list as a loss": says(train_loss=[0.1]),
    "a metric of its own": says(mine=1.0),
    "no loss": without("metrics", "train-loss"),
    "a second set of metrics": lambda content: content.update({"more": MetricRecord({"x": float("nan")})}),
    "a configuration": lambda content: content.update({"c": ConfigRecord({"x": b"y" * 1000})}),
}
"""Lies about what no average needs: the update itself counts."""


def app(lie: Lie | None) -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        state = message.content["arrays"].to_torch_state_dict()
        after = {"weight": state["weight"] + ADDED[context.node_id], "count": state["count"] + 1}
        said = {"num-examples": 2, "steps": 1, "partition-id": context.node_config["partition-id"], "train-loss": 0.5}
        content = RecordDict({"arrays": ArrayRecord(after), "metrics": MetricRecord(said)})
        if lie is not None and context.node_id == LIAR:
            lie(content)
        return Message(content, reply_to=message)

    return made


def fedavg(kind: Any = FedAvg, **given: Any) -> Strategy:
    return kind(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3, **given)


def train(strategy: Strategy, lie: Lie | None, rounds: int = 1) -> dict[str, Tensor]:
    result = strategy.start(grid=InProcessGrid(app(lie), 3), initial_arrays=ArrayRecord(START), num_rounds=rounds)
    return dict(result.arrays.to_torch_state_dict())


@pytest.mark.parametrize("name", LIES)
def test_a_liar_is_left_out_by_name_and_the_round_goes_on(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "shadow_defense.federated.flower")
    final = train(RecordingStrategy(CheckedStrategy(fedavg(), names=NAMES), tmp_path, names=NAMES), LIES[name])
    # The mean of the other two: 0.5 and 1.
    torch.testing.assert_close(final["weight"], START["weight"] + 0.75)
    assert int(final["count"]) == 5 and final["count"].dtype == torch.int64
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == 1 and ("south" in lines[0] or f"node-{LIAR}" in lines[0])
    assert all(line.isprintable() and len(line) < 800 for line in lines)
    recorded = {path.name for path in round_folder(tmp_path, 0).iterdir()}
    assert {"update-north.safetensors", "update-west.safetensors", "global.safetensors"} == recorded


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("kind", [FedAvg, FedMedian, UpdateAveraging])
def test_a_lie_about_what_no_average_needs_changes_nothing(kind: Any, name: str, tmp_path: Path) -> None:
    inner = UpdateAveraging(3) if kind is UpdateAveraging else fedavg(kind)
    final = train(RecordingStrategy(CheckedStrategy(inner, names=NAMES), tmp_path, names=NAMES), HARMLESS[name])
    # Mean of 0.5, -1 and 1; the median is 0.5.
    torch.testing.assert_close(final["weight"], START["weight"] + (0.5 if kind is FedMedian else 0.5 / 3))
    assert len(list(round_folder(tmp_path, 0).glob("update-*"))) == 3
    assert not list(tmp_path.rglob("*..*"))


def test_of_two_that_say_they_are_the_same_client_neither_is_believed(tmp_path: Path) -> None:
    train(RecordingStrategy(fedavg(), tmp_path, names=NAMES), says(partition_id=0))
    recorded = sorted(path.name for path in round_folder(tmp_path, 0).glob("update-*"))
    assert recorded == [f"update-{name}.safetensors" for name in ("node-100", "node-101", "west")]


def test_of_a_node_that_answers_twice_the_first_counts(caplog: pytest.LogCaptureFixture) -> None:
    strategy = CheckedStrategy(fedavg())
    grid = InProcessGrid(app(None), 3)
    asked = list(strategy.configure_train(1, ArrayRecord(START), ConfigRecord(), grid))
    replies = sorted(grid.send_and_receive(asked), key=lambda reply: reply.metadata.src_node_id)
    arrays, _ = strategy.aggregate_train(1, [*replies, replies[-1], replies[-1]])
    assert arrays is not None
    torch.testing.assert_close(arrays.to_torch_state_dict()["weight"], START["weight"] + 0.5 / 3)
    assert caplog.text.count("another reply of node 102") == 2


def test_an_error_in_place_of_an_update_is_shown_without_its_control_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = ClientApp()

    @made.train()
    def fails(message: Message, context: Context) -> Message:
        if context.node_id == LIAR:
            return Message(Error(7, "\x1b[2J" + "x" * 10_000), reply_to=message)
        return app(None)(message, context)

    strategy = CheckedStrategy(fedavg())
    strategy.start(grid=InProcessGrid(made, 3), initial_arrays=ArrayRecord(START), num_rounds=1)
    (line,) = (each.getMessage() for each in caplog.records if "left out" in each.getMessage())
    assert line.isprintable() and len(line) < 800


@pytest.mark.parametrize("lie", [says(weight=-3.0), says(weight=0.0), says(weight=1e300), without("metrics", "weight")])
def test_the_weight_that_a_strategy_averages_by_is_checked(lie: Lie) -> None:
    def all_say_it(content: RecordDict) -> None:
        content["metrics"]["weight"] = 1.0

    made = ClientApp()

    @made.train()
    def weighted(message: Message, context: Context) -> Message:
        reply = app(None)(message, context)
        all_say_it(reply.content)
        if context.node_id == LIAR:
            lie(reply.content)
        return reply

    strategy = CheckedStrategy(fedavg(weighted_by_key="weight"))
    result = strategy.start(grid=InProcessGrid(made, 3), initial_arrays=ArrayRecord(START), num_rounds=1)
    torch.testing.assert_close(result.arrays.to_torch_state_dict()["weight"], START["weight"] + 0.75)


def test_an_adaptive_strategy_survives_the_largest_change_that_is_let_in() -> None:
    start = {"weight": START["weight"]}
    largest = weight(np.array([[2.0**60, 1]], F32))
    made = ClientApp()

    @made.train()
    def single(message: Message, context: Context) -> Message:
        after = ArrayRecord(message.content["arrays"].to_torch_state_dict())
        content = RecordDict({"arrays": after, "metrics": MetricRecord({"num-examples": 1})})
        if context.node_id == LIAR:
            largest(content)
        return Message(content, reply_to=message)

    strategy = CheckedStrategy(fedavg(FedAdam, eta=0.1))
    result = strategy.start(grid=InProcessGrid(made, 3), initial_arrays=ArrayRecord(start), num_rounds=2)
    assert torch.isfinite(result.arrays.to_torch_state_dict()["weight"]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**62, -1, [1], 0])
def test_a_node_that_lies_about_who_it_is_does_not_end_the_draw(value: Any) -> None:
    made = app(None)

    @made.query()
    def who(message: Message, context: Context) -> Message:
        partition = value if context.node_id == LIAR else context.node_config["partition-id"]
        return Message(RecordDict({"metrics": MetricRecord({"partition-id": partition})}), reply_to=message)

    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy = SamplingStrategy(CheckedStrategy(inner), chosen=lambda round: (0, 2), timeout=5.0)
    grid = InProcessGrid(made, 3)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(START), num_rounds=1)
    trained = {reply.metadata.src_node_id for reply in grid.replies if reply.metadata.message_type == "train"}
    assert trained == {100, 102}


EVALUATION_LIES: dict[str, Lie] = {
    "NaN images": says(num_examples=float("nan")),
    "no images": says(num_examples=0),
    "a list of images": says(num_examples=[1]),
    "no metrics": without("metrics"),
}


@pytest.mark.parametrize("name", EVALUATION_LIES)
def test_a_lie_in_an_evaluation_is_left_out_too(name: str, caplog: pytest.LogCaptureFixture) -> None:
    made = app(None)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        content = RecordDict({"metrics": MetricRecord({"num-examples": 2, "loss": float(context.node_id)})})
        if context.node_id == LIAR:
            EVALUATION_LIES[name](content)
        return Message(content, reply_to=message)

    strategy = CheckedStrategy(FedAvg(min_train_nodes=3, min_available_nodes=3, min_evaluate_nodes=3))
    result = strategy.start(grid=InProcessGrid(made, 3), initial_arrays=ArrayRecord(START), num_rounds=1)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"loss": 101.0}
    assert "evaluation 1 of this Flower run: left out" in caplog.text


def test_where_too_few_are_left_the_training_stops_in_one_line() -> None:
    with pytest.raises(RunError, match="has 2 usable updates, at least 3 are needed") as raised:
        train(CheckedStrategy(fedavg(), names=NAMES, at_least=3), LIES["a pickle"])
    assert "\n" not in str(raised.value) and "south" in str(raised.value)
