"""Storages against what torch itself writes, and claims that are not so."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.legacy_storage import LegacyStorage, read_legacy_storage
from shadow_defense.unpickling import Allowance


def read(content: bytes) -> LegacyStorage:
    return read_legacy_storage(content, Allowance(1000, 0))


def written_by_torch(tensor: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(tensor.storage(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


DTYPES = [torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_those_that_torch_wrote(dtype: torch.dtype) -> None:
    tensor = (torch.randn(37, generator=torch.Generator().manual_seed(3)) * 50).abs().to(dtype)
    storage = read(written_by_torch(tensor))
    np.testing.assert_array_equal(storage.values, tensor.numpy().astype(storage.values.dtype))
    assert storage.values.itemsize == tensor.element_size()
    assert not storage.values.flags.writeable


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.int8])
def test_other_element_types_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(SnapshotError, match=r"'torch\.\w+Storage'"):
        read(written_by_torch(torch.zeros(3, dtype=dtype)))


class Act:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("exit 3",)


def parts(count: int = 4, claimed: int | None = None, data: bytes | None = None, **changes: object) -> bytes:
    """A storage file written by Python's pickler; the description goes through a real persistent id."""

    class Marker:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Marker):
                return changes.get("identity", ("storage", torch.FloatStorage, "7", "cpu", claimed or count, None))
            return None

    stream = io.BytesIO()
    system = changes.get("system", {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}})
    for value in (changes.get("magic", 0x1950A86A20F9469CFC6C), changes.get("version", 1001), system):
        pickle.dump(value, stream, protocol=2)
    Pickler(stream, protocol=2).dump(changes.get("described", Marker()))
    pickle.dump(changes.get("keys", ["7"]), stream, protocol=2)
    return stream.getvalue() + struct.pack("<q", claimed or count) + (bytes(4 * count) if data is None else data)


def test_the_hand_made_file_is_good() -> None:
    assert len(read(parts()).values) == 4
    assert len(read(parts(count=0)).values) == 0


@pytest.mark.parametrize("place", ["magic", "version", "system", "described", "keys", "identity"])
def test_a_payload_in_any_inner_pickle_is_refused_by_name(place: str) -> None:
    with pytest.raises(SnapshotError, match=r"'(posix|nt)\.system'"):
        read(parts(**{place: ("storage", Act(), "7", "cpu", 4, None) if place == "identity" else Act()}))


IDENTITIES = [
    ("module", torch.FloatStorage, "7", "cpu", 4, None),
    ("storage", "FloatStorage", "7", "cpu", 4, None),
    ("storage", torch.FloatStorage, 7, "cpu", 4, None),
    ("storage", torch.FloatStorage, "7", None, 4, None),
    ("storage", torch.FloatStorage, "7", "cpu", -4, None),
    ("storage", torch.FloatStorage, "7", "cpu", 4.0, None),
    ("storage", torch.FloatStorage, "7", "cpu", True, None),
    ("storage", torch.FloatStorage, "7", "cpu", 4, ("7", 0, 4)),
    ("storage", torch.FloatStorage, "7", "cpu", 3, None),
    ("storage", torch.DoubleStorage, "7", "cpu", 4, None),
    ("storage", torch.FloatStorage, "8", "cpu", 4, None),
    ("storage",),
    (),
    "7",
]


@pytest.mark.parametrize("identity", IDENTITIES, ids=str)
def test_descriptions_that_torch_does_not_write_are_refused(identity: object) -> None:
    with pytest.raises(SnapshotError, match="a tensor's storage"):
        read(parts(identity=identity))


CHANGES: list[dict[str, object]] = [
    {"magic": 1},
    {"version": 1002},
    {"system": {"little_endian": False}},
    {"system": []},
    {"keys": []},
    {"keys": ["7", "8"]},
    {"described": None},
    {"data": bytes(15)},
    {"data": bytes(17)},
    {"data": b""},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_other_contents_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SnapshotError, match="a tensor's storage"):
        read(parts(**changes))  # type: ignore[arg-type]


def test_a_claim_of_ten_gigabytes_allocates_nothing() -> None:
    content = parts(claimed=10 * 2**30 // 4)
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotError, match="claims 2684354560 elements of 4 bytes but 16 bytes are there"):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_every_truncation_is_refused() -> None:
    whole = parts()
    for length in range(len(whole)):
        with pytest.raises(SnapshotError):
            read(whole[:length])


def test_the_storage_type_is_not_called() -> None:
    content = parts()
    called = content.replace(b"ctorch\nFloatStorage\nq\x01", b"ctorch\nFloatStorage\n)Rq\x01")
    assert called != content
    with pytest.raises(SnapshotError, match="calls its own type"):
        read(called)
