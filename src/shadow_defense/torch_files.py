"""Tensors from files that ``torch.save`` wrote, as both of its formats; what a file claims is checked first.

``torch.load(weights_only=True)`` runs no code, but builds what a file asks for: sparse, nested and quantised tensors,
terabytes that a stride of 0 makes of one number, dictionaries whose keys crash the interpreter.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shadow_defense.errors import SnapshotError
from shadow_defense.files import check_regular
from shadow_defense.unpickling import Allowance, Machine, Placeholder, RemarkedDict, StandIn, string_keys

FILE_BYTES = 2 * 2**30
"""Of the largest file read; a ResNet-152 has 0.25 GiB."""

PICKLE_BYTES = 16 * 2**20
"""Of the description of the tensors in the newer format; of a ResNet-152 it has 0.1 MiB."""

STEPS = 1_000_000
"""Pickle instructions; a tensor takes about thirty."""

MEMBERS = 100_000

COPIES = 2
"""How often a file's bytes may appear in its tensors: tied weights appear twice."""

ELEMENT_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip

LEGACY_PICKLES = 5
"""Magic number, version, byte order, the value, the storages' keys; then, for each key, its number and its bytes."""


def read_torch_file(path: Path) -> object:
    """The value in the file: as a rule a dict of tensors; they are dense, of plain types, and in memory of their own.

    Raises:
        OSError, ValueError: where the file is missing, no regular file, too large or damaged.
        SnapshotError: where it holds anything but tensors, numbers, texts, lists and dicts, or claims more elements
            than it has.
    """
    check_regular(path, FILE_BYTES)
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        _check_archive(path)
    else:
        _check_legacy(path.read_bytes())
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own reasons advise to load the file unsafely
        raise ValueError("it is damaged, or no file that torch.save wrote") from error
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def _plain(value: object) -> object:
    # Each in memory of its own: storages that tensors share would be written where only one is meant.
    return value.detach().clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value


def _check_archive(path: Path) -> None:
    """The newer format: a zip file, nothing in it compressed, with the description as ``data.pkl``."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS:
            raise ValueError(f"it has {len(members)} parts and at most {MEMBERS} are read")
        if any(each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1 for each in members):
            raise ValueError("a part is compressed or encrypted, which torch.save never does")
        found = [each for each in members if each.filename.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1 or found[0].file_size > PICKLE_BYTES:
            raise ValueError("it has not exactly one data.pkl of a sensible size")
        described = archive.read(found[0])
    claims = _Claims(path.stat().st_size)
    Machine(claims.names(), Allowance(STEPS, 0), claims.storage).run(io.BytesIO(described))


def _check_legacy(content: bytes) -> None:
    """The older format: five pickles, then the bytes of the storages."""
    claims, stream = _Claims(len(content)), io.BytesIO(content)
    allowance = Allowance(STEPS, 0)
    for _ in range(LEGACY_PICKLES):
        Machine(claims.names(), allowance, claims.storage).run(stream)


@dataclass(frozen=True, eq=False, slots=True)
class _Storage:
    elements: int
    element_bytes: int


class _Claims:
    """What a description may claim of a file with so many bytes."""

    def __init__(self, size: int) -> None:
        self._left, self._size = COPIES * size, size
        self._stored: dict[str, int] = {}

    def names(self) -> dict[tuple[str, str], StandIn]:
        replacements = {
            ("collections", "OrderedDict"): _dictionary,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            **{("torch", kind): _not_called for kind in ELEMENT_BYTES},
        }
        return {key: StandIn(key[1], replace) for key, replace in replacements.items()}

    def storage(self, identity: object) -> _Storage:
        """What stands for ('storage', type, key, device, elements[, None])."""
        if type(identity) is tuple and len(identity) in (5, 6) and type(identity[1]) is StandIn:
            element, key, count = ELEMENT_BYTES.get(identity[1].name), identity[2], identity[4]
            if element and type(key) is str and type(count) is int and count >= 0 and identity[5:] in ((), (None,)):
                self._stored[key] = count * element
                if sum(self._stored.values()) <= self._size:
                    return _Storage(count, element)
        raise SnapshotError("a tensor's storage is of another type, or larger than the file")

    def _tensor(self, arguments: tuple[object, ...]) -> Placeholder:
        """Stand-in of ``_rebuild_tensor_v2(storage, offset, size, stride, ...)``: nothing may lie outside."""
        storage, offset, size, stride = arguments[:4] if len(arguments) >= 4 else (None,) * 4
        if type(storage) is not _Storage or not _whole((offset,)) or not _whole(size) or not _whole(stride):
            raise SnapshotError("a tensor is built from something that is no storage, offset, sizes and strides")
        assert isinstance(offset, int) and isinstance(size, tuple) and isinstance(stride, tuple)
        elements = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True) if side > 1)
        if elements and (elements > storage.elements or last >= storage.elements):
            raise SnapshotError(f"a tensor of shape {size} reaches outside its storage of {storage.elements} elements")
        self._left -= elements * storage.element_bytes
        if self._left < 0:
            raise SnapshotError("its tensors share their storages, and have more elements than the file")
        return Placeholder()


def _whole(value: object) -> bool:
    return type(value) is tuple and len(value) <= 8 and all(type(item) is int and 0 <= item < 2**48 for item in value)


def _dictionary(arguments: tuple[object, ...]) -> RemarkedDict:
    pairs = arguments[0] if len(arguments) == 1 else []
    if len(arguments) > 1 or type(pairs) is not list or any(type(pair) not in (list, tuple) for pair in pairs):
        raise SnapshotError("a dictionary is built from something that is no list of pairs")
    string_keys([pair[0] if pair else None for pair in pairs])
    return RemarkedDict()


def _parameter(arguments: tuple[object, ...]) -> Placeholder:
    if not arguments or type(arguments[0]) is not Placeholder:
        raise SnapshotError("a parameter is built from something that is no tensor")
    return Placeholder()


def _not_called(arguments: tuple[object, ...]) -> object:
    raise SnapshotError("a storage's type is called")
