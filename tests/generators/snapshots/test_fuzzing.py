"""Damaged and invented snapshots: one line each, and nothing that an audit would call an act."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.importing import read_snapshot
from shadow_defense.generators.snapshots.stand_ins import official_names
from shadow_defense.unpickling import Allowance

# Not exec and import: the checker of shapes does both, once for each function.
ACTS = ("pickle.", "os.", "subprocess.", "socket.", "shutil.", "ctypes.")

acts: list[str] = []
watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if watching and event.startswith(ACTS):
        acts.append(f"{event} {arguments}")


sys.addaudithook(_watch)


def read_only(path: Path, content: bytes) -> None:
    """Read; whatever happens is a SnapshotError of one line or a snapshot, and no act of the interpreter."""
    global watching
    path.write_bytes(content)
    acts.clear()
    watching = True
    try:
        read_snapshot(path)
    except SnapshotError as error:
        assert "\n" not in str(error)
    finally:
        watching = False
    assert not acts


UNHURRIED = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def test_the_audit_sees_what_it_should() -> None:
    global watching
    watching = True
    try:
        import pickle

        pickle.loads(b"cos\ngetpid\n)R.")
    finally:
        watching = False
    assert any("pickle.find_class" in act for act in acts)


@pytest.mark.slow
@UNHURRIED
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes(little_pickle: bytes, tmp_path: Path, flips: list[tuple[float, int]]) -> None:
    content = bytearray(little_pickle)
    for place, value in flips:
        content[int(place * len(content))] = value
    read_only(tmp_path / "flipped.pkl", bytes(content))


@pytest.mark.slow
@UNHURRIED
@given(st.sampled_from(["cut", "shortened", "repeated"]), st.floats(0, 1), st.integers(0, 300))
def test_cut_and_shortened(little_pickle: bytes, tmp_path: Path, damage: str, place: float, length: int) -> None:
    start = int(place * len(little_pickle))
    before, after = little_pickle[:start], little_pickle[start:]
    contents = {"cut": before, "shortened": before + after[length:], "repeated": before + after[:length] + after}
    read_only(tmp_path / "damaged.pkl", contents[damage])


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


NAMES = [f"c{module}\n{name}\n".encode() for module, name in official_names(Allowance(1, 1))]
KEYS = ["type", "class", "version", "class_name", "state", "_parameters", "_buffers", "_modules", "_init_kwargs", "G"]
PIECES = [
    *NAMES,
    *map(_text, KEYS),
    b"N",
    b"\x88",
    b"K\x06",
    b"K\x00",
    b"J\xff\xff\xff\xff",
    b"G" + bytes(8),
    b"C\x01a",
]
PIECES += [
    b"}",
    b"]",
    b")",
    b"\x8f",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"a",
    b"e",
    b"s",
    b"u",
    b"\x90",
    b"R",
    b"R",
]
PIECES += [b"\x81", b"b", b"\x94", b"q\x00", b"h\x00", b"h\x01", b"h\x02", b"Q", b"\x93", b"cos\ngetpid\n", b"0", b"2"]


@UNHURRIED
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=60))
def test_invented_programs(tmp_path: Path, pieces: list[bytes]) -> None:
    read_only(tmp_path / "invented.pkl", b"\x80\x04" + b"".join(pieces) + b".")
