"""Storages in torch's old file format, which snapshots hold one for each tensor (docs/generators.md).

Five pickles of protocol 2 (magic number, version, byte order and sizes, the storage's description, its key), then the
number of elements as int64 and the elements, little-endian.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from shadow_defense.errors import SnapshotError
from shadow_defense.unpickling import Allowance, Machine, StandIn

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001

ELEMENTS = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "u1",
    "BoolStorage": "u1",
}
"""Element types by torch's name; Bool is read as bytes, since other bytes than 0 and 1 are no NumPy booleans."""


@dataclass(frozen=True, eq=False, slots=True)
class LegacyStorage:
    """A storage's elements as a read-only view into the file's bytes, and torch's name of their type."""

    kind: str
    values: Shaped[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, slots=True)
class Description:
    """What the fourth pickle says: the element type, the storage's key, and the number of elements claimed."""

    kind: str
    key: str
    count: int


def _refuse_call(arguments: tuple[object, ...]) -> object:
    raise SnapshotError("a tensor's storage calls its own type")


STORAGE_TYPES = {("torch", kind): StandIn(kind, _refuse_call) for kind in ELEMENTS}


def describe(identity: object) -> Description:
    """The storage behind a persistent id: ('storage', type, key, device, number of elements, None).

    Raises:
        SnapshotError: when the id is anything else, or its type is none of :data:`ELEMENTS`.
    """
    if type(identity) is tuple and len(identity) in (5, 6):
        word, kind, key, device, count, *view = identity
        if (
            (type(word), word) == (str, "storage")
            and type(kind) is StandIn
            and type(key) is str
            and type(device) is str
            and type(count) is int
            and count >= 0
            and view in ([], [None])
        ):
            return Description(kind.name, key, count)
    raise SnapshotError("a tensor's storage is described in a way that torch does not write")


def read_legacy_storage(content: bytes, allowance: Allowance) -> LegacyStorage:
    """Parse one storage file; nothing is copied or allocated for the elements.

    Raises:
        SnapshotError: when the bytes are no such file, or the elements claimed are not those that are there.
    """
    stream = io.BytesIO(content)
    magic, version, system = (Machine({}, allowance).run(stream) for _ in range(3))
    if magic != MAGIC or version != VERSION:
        raise SnapshotError("a tensor's storage does not open with torch's magic number and version")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise SnapshotError("a tensor's storage does not say that it is little-endian")
    described = Machine(STORAGE_TYPES, allowance, persistent=describe).run(stream)
    keys = Machine({}, allowance).run(stream)
    if type(described) is not Description or type(keys) is not list or keys != [described.key]:
        raise SnapshotError("a tensor's storage does not hold exactly the one storage that it describes")
    counted = stream.read(8)
    start = stream.tell()
    element = np.dtype(ELEMENTS[described.kind])
    # Compared before anything of that size exists: a claim costs an attacker nothing.
    if int.from_bytes(counted, "little", signed=True) != described.count or len(counted) != 8:
        raise SnapshotError("a tensor's storage claims two different numbers of elements")
    if len(content) - start != described.count * element.itemsize:
        raise SnapshotError(
            f"a tensor's storage claims {described.count} elements of {element.itemsize} bytes "
            f"but {len(content) - start} bytes are there"
        )
    return LegacyStorage(described.kind, np.ndarray((described.count,), element, buffer=content, offset=start))
