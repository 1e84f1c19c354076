"""Records against torch's own state_dict, and records that hold themselves or stand for each other."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.network_record import (
    NetworkRecord,
    PersistentObject,
    network_record,
    plain_value,
)
from shadow_defense.generators.snapshots.stand_ins import official_names
from shadow_defense.unpickling import Allowance, Machine


def record(content: bytes, name: str = "G") -> NetworkRecord:
    allowance = Allowance(10**5, 10**6)
    root = Machine(official_names(allowance), allowance).run(io.BytesIO(content))
    assert type(root) is dict
    return network_record(root[name], allowance)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_names_order_and_values_are_those_of_torch(little_snapshot: dict[str, Any], protocol: int) -> None:
    network: nn.Module = little_snapshot["G"]
    read = record(pickle.dumps(little_snapshot, protocol))
    expected = network.state_dict()
    assert list(read.tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(read.tensors[name], tensor), name
        assert read.tensors[name].dtype == tensor.dtype
    assert read.parameter_count == sum(parameter.numel() for parameter in network.parameters())
    assert read.class_name == "Generator"
    assert read.arguments == {"z_dim": 3, "mapping_kwargs": {"num_layers": 2}, "beta": 0.5, "name": None}


def module(**state: object) -> PersistentObject:
    return PersistentObject("Layer", {"_parameters": {}, "_buffers": {}, "_modules": {}} | state)


def network(**state: object) -> PersistentObject:
    return module(**({"_init_args": (), "_init_kwargs": {}} | state))


def test_the_hand_made_network_is_good() -> None:
    assert network_record(network(_modules={"a": module(), "b": None}), Allowance(9, 0)).tensors == {}


def test_modules_that_hold_themselves_are_refused() -> None:
    children: dict[str, object] = {}
    loop = network(_modules=children)
    children["again"] = loop
    with pytest.raises(SnapshotError, match="nested deeper"):
        network_record(loop, Allowance(1000, 0))


def test_modules_that_multiply_are_refused() -> None:
    """Thirty levels that each hold the next one twice stand for a billion modules."""
    level = module()
    for _ in range(30):
        level = module(_modules={"a": level, "b": level})
    with pytest.raises(SnapshotError, match="more parts"):
        network_record(network(_modules={"a": level}), Allowance(1000, 0))


def test_arguments_that_hold_themselves_or_multiply_are_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    doubled: list[object] = []
    for _ in range(30):
        doubled = [doubled, doubled]
    with pytest.raises(SnapshotError, match="nested deeper"):
        plain_value(loop, Allowance(1000, 0))
    with pytest.raises(SnapshotError, match="more parts"):
        plain_value({"a": doubled}, Allowance(1000, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1}, object(), {"a": [b""]}])
def test_arguments_are_plain(value: object) -> None:
    with pytest.raises(SnapshotError, match="an argument is a"):
        plain_value(value, Allowance(1000, 0))


@pytest.mark.parametrize(
    "state",
    [
        {"_parameters": None},
        {"_buffers": []},
        {"_modules": 3},
        {"_parameters": {"w": 1}},
        {"_buffers": {"w": module()}},
        {"_modules": {"m": {}}},
        {"_modules": {"a.b": module()}},
        {"_buffers": {"": None}},
        {"_buffers": {"weight\ud800": None}},
        {"_parameters": {"w\n": None}},
        {"_parameters": {"w w": None}},
        {"_modules": {"f\u00fc": None}},
        {"_non_persistent_buffers_set": ["w"]},
        {"_init_args": (1,)},
        {"_init_args": None},
        {"_init_kwargs": None},
        {"_init_kwargs": {"a": b""}},
    ],
    ids=ascii,
)
def test_other_records_are_refused(state: dict[str, object]) -> None:
    with pytest.raises(SnapshotError) as caught:
        network_record(network(**state), Allowance(1000, 0))
    assert str(caught.value).isascii() and str(caught.value).isprintable()


def test_one_tensor_used_often_is_not_copied_without_end(little_snapshot: dict[str, Any]) -> None:
    network = little_snapshot["G"]
    shared = nn.Parameter(torch.zeros(5000))
    for index in range(200):
        network.register_parameter(f"copy{index}", shared)
    with pytest.raises(SnapshotError, match="more memory"):
        record(pickle.dumps(little_snapshot, 4))
