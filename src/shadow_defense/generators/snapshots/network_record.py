"""A network as a snapshot records it: its class's name, the arguments it was built with, its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.tensors import TensorRecord
from shadow_defense.unpickling import Allowance, quoted

FORMAT = 6
"""The version of the record that all official PyTorch networks carry."""

DEEPEST = 32
"""Levels of modules or of nested arguments; official networks have four. A record that holds itself has no end."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+")
"""Names of official modules and tensors, each a part of a tensor's dotted name."""


@dataclass(frozen=True, eq=False, slots=True)
class PersistentObject:
    """A module's class name and attributes. The source text that the file carries for it is dropped, never read."""

    class_name: str
    state: dict[str, object]


@dataclass(frozen=True, eq=False)
class NetworkRecord:
    """A network of a snapshot.

    Attributes:
        class_name: the official class, such as ``Generator``.
        arguments: the keyword arguments it was built with; numbers, texts, None, and dicts and lists of them.
        tensors: parameters and buffers under the official names and in the official order.
        parameter_count: number of elements in the parameters alone.
    """

    class_name: str
    arguments: dict[str, Any]
    tensors: dict[str, Shaped[Tensor, "..."]]
    parameter_count: int


def persistent_object(arguments: tuple[object, ...]) -> PersistentObject:
    """Stand-in of ``torch_utils.persistence._reconstruct_persistent_obj(meta)``, which would run the source in it.

    Raises:
        SnapshotError: when ``meta`` is no record of a class in format 6.
    """
    meta = arguments[0] if len(arguments) == 1 else None
    if type(meta) is dict:
        kind, version, class_name, state = (meta.get(key) for key in ("type", "version", "class_name", "state"))
        if kind == "class" and version == FORMAT and type(class_name) is str and type(state) is dict:
            return PersistentObject(class_name, state)
    raise SnapshotError(f"a module's record is not of the official format {FORMAT}")


def plain_value(value: object, allowance: Allowance, depth: int = 0) -> Any:
    """A copy of numbers, texts, None, and dicts and lists of them; tuples become lists.

    Raises:
        SnapshotError: when anything else is in it, a number is not finite, or it is nested without end.
    """
    allowance.step()
    if depth > DEEPEST:
        raise SnapshotError(f"arguments are nested deeper than {DEEPEST} levels")
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, dict):
        return {key: plain_value(item, allowance, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item, allowance, depth + 1) for item in value]
    raise SnapshotError(f"an argument is a {type(value).__name__}: expected finite numbers, texts, lists and dicts")


def _named(state: dict[str, object], key: str) -> dict[str, object]:
    entries = state.get(key)
    if type(entries) is not dict:
        raise SnapshotError(f"a module's {key} are missing")
    for name in entries:
        # A dot would let one name stand for another's, and not every text can be written to a file.
        if not PLAIN_NAME.fullmatch(name):
            raise SnapshotError(f"a module has an entry named {quoted(name)}")
    return entries


def _walk(
    module: PersistentObject, prefix: str, allowance: Allowance, depth: int = 0
) -> Iterator[tuple[str, TensorRecord, bool]]:
    """Name, tensor and whether it is a parameter: a module's parameters, its buffers, then its children's."""
    allowance.step()
    if depth > DEEPEST:
        raise SnapshotError(f"modules are nested deeper than {DEEPEST} levels")
    transient = module.state.get("_non_persistent_buffers_set", set())
    if type(transient) is not set:
        raise SnapshotError("a module's set of transient buffers is no set")
    for key in ("_parameters", "_buffers"):
        for name, tensor in _named(module.state, key).items():
            if tensor is None or (key == "_buffers" and name in transient):
                continue
            if type(tensor) is not TensorRecord:
                raise SnapshotError(f"{quoted(prefix + name)} is no tensor")
            yield prefix + name, tensor, key == "_parameters"
    for name, child in _named(module.state, "_modules").items():
        if child is None:
            continue
        if type(child) is not PersistentObject:
            raise SnapshotError(f"{quoted(prefix + name)} is no module")
        yield from _walk(child, f"{prefix}{name}.", allowance, depth + 1)


def network_record(module: PersistentObject, allowance: Allowance) -> NetworkRecord:
    """Collect a network's arguments and tensors (docs/generators.md).

    Raises:
        SnapshotError: when the record is incomplete, holds itself, or holds anything but tensors and plain arguments.
    """
    if module.state.get("_init_args") != () or type(module.state.get("_init_kwargs")) is not dict:
        raise SnapshotError(f"the {quoted(module.class_name)} was not built from keyword arguments")
    tensors: dict[str, Tensor] = {}
    parameter_count = 0
    for name, record, is_parameter in _walk(module, "", allowance):
        if name in tensors:
            raise SnapshotError(f"it has two tensors named {quoted(name)}")
        tensors[name] = record.clone(allowance)
        parameter_count += tensors[name].numel() if is_parameter else 0
    arguments = plain_value(module.state["_init_kwargs"], allowance)
    return NetworkRecord(module.class_name, arguments, tensors, parameter_count)
