"""Files of torch.save give dense tensors of plain types, or are refused before anything of a claimed size exists."""

from __future__ import annotations

import io
import os
import pickle
import resource
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shadow_defense.errors import ModelError
from shadow_defense.models.weights import read_state
from shadow_defense.torch_files import read_torch_file

FORMATS = pytest.mark.parametrize("zipped", [True, False])


def plain_state() -> dict[str, Any]:
    tied = torch.arange(6.0).view(2, 3)
    return {
        "tied": tied,
        "tied again": tied,
        "transposed": torch.arange(6).view(2, 3).t(),
        "view": torch.arange(10, dtype=torch.float16)[2:5],
        "brain": torch.ones(2, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "bytes": torch.tensor([1, 2], dtype=torch.uint8),
        "counter": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(torch.ones(2)),
    }


@FORMATS
def test_what_torch_saves_comes_back(tmp_path: Path, zipped: bool) -> None:
    state = plain_state()
    torch.save(state, tmp_path / "s.pt", _use_new_zipfile_serialization=zipped)
    found = read_state(tmp_path / "s.pt")
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert found[name].is_contiguous()
    found["tied"].zero_()
    assert torch.equal(found["tied again"], state["tied"])


@FORMATS
def test_a_modules_state_dict_with_its_remarks(tmp_path: Path, zipped: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    torch.save(model.state_dict(), tmp_path / "s.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "s.pth")
    assert isinstance(found, dict)
    model.load_state_dict(found)
    torch.save(OrderedDict(model.state_dict()), tmp_path / "s.pth", _use_new_zipfile_serialization=zipped)
    assert list(read_state(tmp_path / "s.pth")) == list(model.state_dict())


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@FORMATS
@pytest.mark.parametrize(
    "value",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        quantised,
        lambda: torch.ones(2, dtype=torch.complex64),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.ones(3).to(torch.float8_e4m3fn),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.ones(1).expand(10**9),
        lambda: {(1, 2): torch.ones(1)},
    ],
    ids=["sparse", "csr", "quantised", "complex", "meta", "float8", "nested", "expanded", "keys"],
)
@pytest.mark.filterwarnings("ignore")
def test_other_tensors_are_refused(tmp_path: Path, value: Callable[[], object], zipped: bool) -> None:
    made = value()
    try:
        torch.save({"x": made}, tmp_path / "s.pt", _use_new_zipfile_serialization=zipped)
    except Exception as error:
        pytest.skip(f"torch does not save it: {error}")
    with pytest.raises(ModelError) as raised:
        read_state(tmp_path / "s.pt")
    assert "\n" not in str(raised.value)


def changed(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A saved file whose description is changed."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(4)}, buffer)
    with zipfile.ZipFile(buffer) as given, zipfile.ZipFile(path, "w", compression) as written:
        for name in given.namelist():
            content = given.read(name)
            written.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


def in_place_of_a_tensor(function: Callable[..., object], *arguments: object) -> Callable[[bytes], bytes]:
    class Asks:
        def __reduce__(self) -> tuple[object, ...]:
            return function, arguments

    return lambda content: pickle.dumps({"a": Asks()}, 2)


def deep_key(content: bytes) -> bytes:
    return b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"K\x04tq", b"J\x00\x00\x00\x10tq"),
        lambda content: content.replace(b"K\x04\x85", b"J\x00\x00\x00\x70\x85"),
        in_place_of_a_tensor(bytearray, 10**10),
        in_place_of_a_tensor(torch.FloatStorage, 10**10),
        in_place_of_a_tensor(torch.Tensor, 10**5, 10**5),
        in_place_of_a_tensor(os.getpid),
        deep_key,
        lambda content: content[:-1],
        lambda content: b"",
    ],
    ids=["storage", "size", "bytearray", "storage call", "tensor call", "call", "deep key", "cut", "nothing"],
)
def test_hostile_descriptions_cost_nothing(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"s\.pt") as raised:
        read_state(changed(tmp_path / "s.pt", change))
    assert "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_a_compressed_archive_is_refused_and_the_unchanged_one_read(tmp_path: Path) -> None:
    assert torch.equal(read_state(changed(tmp_path / "s.pt", lambda content: content))["a"], torch.ones(4))
    with pytest.raises(ModelError, match="compressed"):
        read_state(changed(tmp_path / "s.pt", lambda content: content, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_file_is_one_line_at_once(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    for path in (*tmp_path.iterdir(), tmp_path / ("x" * 5000 + suffix), tmp_path / f"a\0b{suffix}"):
        with pytest.raises(ModelError):
            read_state(path)
