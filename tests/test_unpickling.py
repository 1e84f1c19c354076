"""The machine: the same values as Python's unpickler for plain data, and no way for a pickle to act."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.legacy_storage import STORAGE_TYPES, LegacyStorage
from shadow_defense.generators.snapshots.network_record import PersistentObject
from shadow_defense.generators.snapshots.stand_ins import official_names
from shadow_defense.generators.snapshots.tensors import TensorRecord
from shadow_defense.unpickling import Allowance, Machine, Placeholder, StandIn


def run(content: bytes, steps: int = 10_000, copied: int = 10_000) -> Any:
    allowance = Allowance(steps, copied)
    return Machine(official_names(allowance), allowance).run(io.BytesIO(content))


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def global_line(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def global_stack(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return text(module) + text(attribute) + b"\x93"


PROTOCOL = b"\x80\x04"
EASY_DICT, ORDERED_DICT = global_line("dnnlib.util.EasyDict"), global_line("collections.OrderedDict")
NDARRAY = global_line("numpy.ndarray")

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    | st.sets(st.text(max_size=3), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=4), inner, max_size=5)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)


@given(plain, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_come_out_as_from_pythons_unpickler(value: object, protocol: int) -> None:
    assert run(pickle.dumps(value, protocol)) == value


@given(st.binary(min_size=1, max_size=300), st.sampled_from([2, 3, 4, 5]))
def test_bytes_come_out_at_every_protocol(value: bytes, protocol: int) -> None:
    assert run(pickle.dumps(value, protocol)) == value


def test_what_is_shared_stays_shared() -> None:
    inner: list[int] = [1]
    loaded = run(pickle.dumps([inner, inner], 4))
    assert loaded[0] is loaded[1]


ACTING = ["os.system", "posix.system", "nt.system", "builtins.eval", "builtins.exec", "builtins.getattr"]
ACTING += ["__builtin__.eval", "torch.load", "torch.storage.torch.load", "subprocess.Popen", "pickle.loads"]
ACTING += ["shadow_defense.files.write_text", "collections.abc.sys", "dnnlib.util.open_url", "torch.FloatStorage"]


@pytest.mark.parametrize("write", [global_line, global_stack])
@pytest.mark.parametrize("name", ACTING)
def test_every_other_name_is_refused_by_name(name: str, write: Any, tmp_path: Any) -> None:
    target = tmp_path / "touched"
    call = PROTOCOL + write(name) + text(f"touch {target}") + b"\x85R."
    with pytest.raises(SnapshotError, match=name.replace(".", r"\.")):
        run(call)
    assert not target.exists()


def test_tensorflow_networks_have_a_message_of_their_own() -> None:
    with pytest.raises(SnapshotError, match="TensorFlow network"):
        run(PROTOCOL + global_stack("dnnlib.tflib.network.Network") + b")\x81.")


def test_every_stand_in_is_ours_and_cannot_be_called() -> None:
    """What the machine holds for a name is no callable, and what it does is a function of this package."""
    for (module, name), stand_in in {**official_names(Allowance(1, 1)), **STORAGE_TYPES}.items():
        assert type(stand_in) is StandIn, (module, name)
        assert not callable(stand_in)
        function = stand_in.replace.func if isinstance(stand_in.replace, partial) else stand_in.replace
        assert function.__module__.startswith("shadow_defense.generators.snapshots.")


odd = st.one_of(
    plain,
    st.binary(max_size=20),
    st.builds(Placeholder),
    st.just(PersistentObject("Layer", {})),
    st.just({"type": "class", "version": 6, "class_name": "Layer", "state": {}}),
    st.lists(st.text(max_size=2), max_size=3),
)
INERT = (dict, set, bytes, Placeholder, PersistentObject, LegacyStorage, TensorRecord)


@given(st.sampled_from(sorted(official_names(Allowance(1, 1)))), st.lists(odd, max_size=7))
def test_stand_ins_give_inert_things_whatever_their_arguments(name: tuple[str, str], arguments: list[object]) -> None:
    try:
        result = official_names(Allowance(1000, 1000))[name].replace(tuple(arguments))
    except SnapshotError as error:
        assert "\n" not in str(error)
    else:
        assert type(result) in INERT


INSTRUCTIONS = {
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x01",
    "EXT4": b"\x84\x01\x01\x01\x00",
    "INST": b"(ios\nsystem\n",
    "OBJ": b"(" + EASY_DICT + b"o",
    "PERSID": b"Pid\n",
    "NEWOBJ_EX": EASY_DICT + b")}\x92",
    "LONG4": b"\x8b\x01\x00\x00\x00\x01",
    "FROZENSET": b"(\x91",
    "BYTEARRAY8": b"\x96" + bytes(8),
    "NEXT_BUFFER": b"\x97",
    "INT": b"I1\n",
    "STRING": b"S'a'\n",
    "GET": b"g0\n",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_snapshots_do_not_use_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A registered extension would let EXT1 name a callable without spelling it.
    for code in (1, 257):
        monkeypatch.setitem(copyreg._inverted_registry, code, ("os", "system"))  # type: ignore[attr-defined]
    with pytest.raises(SnapshotError, match=rf"instruction {name},"):
        run(PROTOCOL + INSTRUCTIONS[name] + b".")


def test_references_to_data_outside_the_file_are_refused() -> None:
    with pytest.raises(SnapshotError, match="outside the file"):
        run(PROTOCOL + text("id") + b"Q.")


TARGETS = {
    "a stand-in": EASY_DICT,
    "a dictionary": EASY_DICT + b")\x81",
    "an ordered dictionary": ORDERED_DICT + b")R",
    "a set": b"\x8f",
    "a list": b"]",
    "bytes": b"C\x01a",
    "a module's record": global_line("torch_utils.persistence._reconstruct_persistent_obj")
    + b"}("
    + text("type")
    + text("class")
    + text("version")
    + b"K\x06"
    + text("class_name")
    + text("L")
    + text("state")
    + b"}u\x85R",
}
STATES = {
    "attributes": b"}(" + text("replace") + b"N" + text("__class__") + NDARRAY + b"u",
    "slots": b"N}(" + text("__call__") + NDARRAY + text("__defaults__") + b")u\x86",
    "none": b"N",
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_state_is_set_on_anything(target: bytes, state: bytes) -> None:
    with pytest.raises(SnapshotError, match="sets the state of something that has none"):
        run(PROTOCOL + target + state + b"b.")


def test_placeholders_of_numpy_forget_their_state() -> None:
    made = run(PROTOCOL + global_line("numpy.dtype") + text("f8") + b"\x85R" + STATES["attributes"] + b"b.")
    assert type(made) is Placeholder
    assert not hasattr(made, "replace")
    assert not hasattr(Placeholder, "replace")


@pytest.mark.parametrize("target", [EASY_DICT, NDARRAY, NDARRAY + b")R", b")", b"N"])
@pytest.mark.parametrize("change", [text("a") + b"Ns", b"(" + text("a") + b"Nu", b"Na", b"(Ne", b"(N\x90"])
def test_only_dictionaries_lists_and_sets_are_filled(target: bytes, change: bytes) -> None:
    with pytest.raises(SnapshotError, match=r"something that is no (dictionary|list|set)"):
        run(PROTOCOL + target + change + b".")


@pytest.mark.parametrize("called", [b"N", b"]", text("os.system"), NDARRAY + b")R", b"}"])
@pytest.mark.parametrize("instruction", [b"R", b"\x81"])
def test_only_stand_ins_are_called(called: bytes, instruction: bytes) -> None:
    with pytest.raises(SnapshotError, match="cannot be called"):
        run(PROTOCOL + called + b")" + instruction + b".")


def test_keys_that_are_no_text_are_refused() -> None:
    """Nested tuples as a key overflow the C stack of Python's own unpickler and end the process."""
    with pytest.raises(SnapshotError, match="keys are not all text"):
        run(PROTOCOL + b"})" + b"\x85" * 20_000 + b"Ns.", steps=10**6)
    with pytest.raises(SnapshotError, match="keys are not all text"):
        run(PROTOCOL + b"\x8f()\x90.")


def test_claims_of_size_allocate_nothing() -> None:
    """A memo index of 2^31 takes Python's own unpickler 32 GiB; here indexes are keys."""
    assert run(PROTOCOL + b"Nr\xff\xff\xff\x7f.") is None
    for claim in (b"\x8e" + struct.pack("<Q", 2**40), b"\x8d" + struct.pack("<Q", 2**62), b"B\xff\xff\xff\xff"):
        with pytest.raises(SnapshotError, match="cut off"):
            run(PROTOCOL + claim + b"abc.")
    with pytest.raises(SnapshotError, match="cut off"):
        run(PROTOCOL + b"\x95" + struct.pack("<Q", 2**40) + b"N.")


def test_long_programs_and_repeated_copies_are_refused() -> None:
    with pytest.raises(SnapshotError, match="more parts"):
        run(PROTOCOL + b"(" + b"]" * 20_000 + b"l.")
    with pytest.raises(SnapshotError, match="more memory"):
        copies = (b"h\x00h\x01R" for _ in range(20))
        run(
            PROTOCOL
            + global_line("_codecs.encode")
            + b"q\x00"
            + text("a" * 900)
            + text("latin1")
            + b"\x86q\x01"
            + b"".join(copies)
            + b"."
        )


DAMAGED = (b"", b".", b"NN.", b"(N.", b"h\x07.", b"t.", b"}(Nu.", b"s.", b"\x87.", b"X\x01\x00\x00\x00\xff.")
DAMAGED += (b"NN\x93.", b"\x80\x09N.", b"\x80\x01N.", b"\x94.", b"b.", b"NR.", b"Nu.", b"hello, world\n", b"\xff")


@pytest.mark.parametrize("program", DAMAGED)
def test_damaged_pickles_are_one_line(program: bytes) -> None:
    with pytest.raises(SnapshotError) as caught:
        run(PROTOCOL + program)
    assert "\n" not in str(caught.value)


def test_names_in_messages_cannot_move_the_cursor() -> None:
    with pytest.raises(SnapshotError) as caught:
        run(PROTOCOL + text("os\n\x1b[2J" + "a" * 500) + text("system") + b"\x93.")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert os.linesep not in str(caught.value)
