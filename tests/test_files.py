"""Files are whole or absent, and damage is reported with the file's name; seeds are named."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shadow_defense.errors import RunError
from shadow_defense.files import (
    atomic_path,
    flatten_tensors,
    link_file,
    nest_tensors,
    path_name,
    read_json,
    read_object,
    read_tensors,
    remove_leftovers,
    text_of_path_name,
    write_json,
    write_tensors,
    write_text,
)
from shadow_defense.seeds import named_generator, seed_for


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyError
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "grid.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.write_text("x")
    assert (tmp_path / "grid.png").read_text() == "x"


def test_json_is_json(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    value = {"a": [1, 2.5, None, "é"]}
    write_json(path, value)
    assert read_json(path) == value
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": bad})
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read .*value\.json") as raised:
        read_json(path)
    assert "\n" not in str(raised.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_json, read_tensors):
        with pytest.raises(RunError, match=r"nothing\.here"):
            read(tmp_path / "nothing.here")


def test_tensors_survive_to_the_bit(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "shared": torch.ones(4)[:2],
        "counter": torch.tensor(7),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(1)),
    }
    path = tmp_path / "t.safetensors"
    write_tensors(path, tensors, {"round": 3, "names": ["a", "b"]})
    read, metadata = read_tensors(path)
    assert metadata == {"round": 3, "names": ["a", "b"]}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.detach())


def test_no_tensors_and_no_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    write_tensors(tmp_path / "empty.safetensors", {})
    assert read_tensors(tmp_path / "empty.safetensors") == ({}, {})
    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    assert read_tensors(tmp_path / "foreign.safetensors")[1] == {}


@pytest.mark.parametrize("metadata", ["{", "[]", "3"])
def test_foreign_metadata_is_refused(tmp_path: Path, metadata: str) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors", metadata={"json": metadata})
    with pytest.raises(RunError, match=r"foreign.safetensors"):
        read_tensors(tmp_path / "foreign.safetensors")


def test_truncated_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"cannot read .*t\.safetensors") as raised:
            read_tensors(path)
        assert "\n" not in str(raised.value)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(RunError, match="safetensors"):
        read_tensors(path)


LEAVES = st.integers(0, 9).map(torch.tensor)
SAFE = st.text(alphabet="abc.1_", min_size=1, max_size=4)


@settings(max_examples=50)
@given(nested=st.recursive(LEAVES, lambda inner: st.dictionaries(SAFE, inner, min_size=1, max_size=3), max_leaves=8))
def test_nested_dicts_survive_flattening(nested: object) -> None:
    nested = nested if isinstance(nested, dict) else {"leaf": nested}
    assert nest_tensors(flatten_tensors(nested)) == nested


def test_seeds_depend_on_every_name() -> None:
    names = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a"), (0, "a1"), (0, "a", "1", ""), (0, 1, "a")]
    seeds = [seed_for(*each) for each in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The same on every machine and in every process: a run can be repeated anywhere.
    assert seed_for(0, "latents", "train/7") == 98514377420716970


def test_named_draws_do_not_shift_one_another() -> None:
    first = torch.rand(3, generator=named_generator(0, "a"))
    torch.rand(5, generator=named_generator(0, "b"))
    before = torch.get_rng_state()
    assert torch.equal(torch.rand(3, generator=named_generator(0, "a")), first)
    assert not torch.equal(torch.rand(3, generator=named_generator(0, "b")), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_out_of_data_are_no_paths() -> None:
    assert path_name("client-1") == "client-1"
    assert path_name("x/../../../escaped") == "x%2F..%2F..%2F..%2Fescaped"
    assert path_name("..") == "%2E." and path_name("%2E.") == "%252E."
    assert path_name("a\0\x1b\ud800é") == "a%00%1B%ED%A0%80%C3%A9"


@settings(max_examples=300)
@given(
    st.lists(st.text(st.characters(), max_size=90) | st.text(alphabet="ab/.%~", max_size=5), min_size=2, max_size=20)
)
def test_every_text_has_a_name_of_its_own(texts: list[str]) -> None:
    names = {text: path_name(text) for text in texts}
    assert len(set(names.values())) == len(names)
    for text, name in names.items():
        assert re.fullmatch(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]{0,119}", name)
        assert text_of_path_name(name) == (None if "~" in name else text)


def test_long_names_are_cut_and_stay_different(tmp_path: Path) -> None:
    names = [path_name("x" * 5000 + end) for end in "ab"]
    assert names[0] != names[1]
    write_text(tmp_path / f"explanation-{names[0]}.safetensors", "fits")


def test_what_is_written_is_its_owners_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    write_text(tmp_path / "run" / "deep" / "report.html", "patients")
    write_tensors(tmp_path / "run" / "t.safetensors", {"a": torch.ones(1)})
    link_file(tmp_path / "run" / "t.safetensors", tmp_path / "run" / "linked.safetensors")
    with atomic_path(tmp_path / "run" / "made.png") as temporary:
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(temporary)
    os.umask(mask)
    for path in (tmp_path / "run").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "file.json").symlink_to(tmp_path / "other")
    write_json(tmp_path / "file.json", 1)
    assert (tmp_path / "other").read_text() == "theirs"
    names = set()
    for _ in range(2):
        with atomic_path(tmp_path / "file.json") as temporary:
            names.add(temporary.name)
    assert len(names) == 2


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".x.0123456789abcdef.partial").write_text("stays")
    run = tmp_path / "run"
    (run / "arms").mkdir(parents=True)
    (run / "link").symlink_to(outside)
    for name in (".update-1.0123456789abcdef.partial.safetensors", ".x.0123456789abcdef.partial"):
        (run / "arms" / name).write_text("half")
    for name in ("x.partial", ".hidden", "update.safetensors", ".x.partial"):
        (run / "arms" / name).write_text("whole")
    remove_leftovers(run)
    assert sorted(path.name for path in (run / "arms").iterdir()) == sorted(
        ["x.partial", ".hidden", "update.safetensors", ".x.partial"]
    )
    assert (outside / ".x.0123456789abcdef.partial").exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[" * 100_000, "nested"),
        ("1" * 5000, "digit"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
    ],
)
def test_hostile_json_is_one_line(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "value.json").write_text(text)
    with pytest.raises(RunError, match=wanted):
        read_json(tmp_path / "value.json")


def test_a_record_of_another_shape_says_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, [1])
    with pytest.raises(RunError, match="holds a list: expected an object of a, b; mend it"):
        read_object(path, "mend it", "a", "b")
    write_json(path, {"a": 1})
    with pytest.raises(RunError, match="has no 'b'"):
        read_object(path, "mend it", "a", "b")
    assert read_object(path, "mend it", "a") == {"a": 1}


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(RunError, match="no regular file"):
        read(tmp_path / "pipe.safetensors")
    for path in (tmp_path / ("x" * 5000), tmp_path / "a\0b", tmp_path):
        with pytest.raises(RunError):
            read(path)


def header_file(path: Path, header: object, length: int | None = None, data: bytes = b"") -> Path:
    written = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes((len(written) if length is None else length).to_bytes(8, "little") + written + data)
    return path


@pytest.mark.parametrize(
    ("header", "length", "wanted"),
    [
        ({}, 2**40, "said to have 1099511627776 bytes"),
        ({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, None, "of type F8_E4M3"),
        ({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, None, "of type C64"),
        ({"a": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4]}}, None, "cannot read"),
        ({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, None, "cannot read"),
        (b"[" * 50_000, None, "nested"),
        ([1], None, "cannot read"),
        ({"a": 3}, None, "of type None"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: object, length: int | None, wanted: str) -> None:
    with pytest.raises(RunError, match=wanted):
        read_tensors(header_file(tmp_path / "t.safetensors", header, length, b"\0" * 4))
