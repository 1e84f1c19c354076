"""Files are whole or absent, and damage is reported with the file's name; seeds are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_defense.errors import RunError
from shadow_defense.files import (
    atomic_path,
    flatten_tensors,
    nest_tensors,
    read_json,
    read_tensors,
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


@settings(deadline=None, max_examples=50)
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
