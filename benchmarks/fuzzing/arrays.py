"""Archives in the MedMNIST layout: headers that claim, members that are no arrays, labels that are no labels."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import TEXTS, change_bytes

NAMES = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels", "train_groups")
DTYPES = (
    "int8", "uint16", "int64", "uint64", "float16", "float64", "complex64", "bool", "datetime64[s]", "timedelta64[D]",
    "S3", "U4", "V5", "longdouble", ">i4", ">f4",
)  # fmt: skip
ARCHIVES = (
    "plain", "plain", "plain", "header", "header", "bomb", "lzma", "bzip2", "encrypted", "strangers", "bare", "bytes",
    "bytes", "many", "sizes", "twice",
)  # fmt: skip
LABELS = (-1, 0, 1, 7, 100, 10**5, 2**31 - 1, 2**63 - 1, 0.5, float("nan"), float("inf"), 1e300)


def valid(random: np.random.Generator) -> dict[str, np.ndarray]:
    """A small data set of two or three classes."""
    arrays = {}
    shape = (8, 8, 3) if random.random() < 0.3 else (8, 8)
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        arrays[f"{part}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 2).reshape((count, 1) if random.random() < 0.5 else count)
    return arrays


def npy(header: str, content: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An .npy file of which the header may claim anything."""
    packed = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(packed))
    return b"\x93NUMPY" + bytes(version) + length + packed + content


HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 1000000, 1000000), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (12, -1, 8), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (12, 8, 8), }",
    "{'descr': [('a', '<i4'), ('b', 'O')], 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': 12, }",
    "{'descr': 'x', 'fortran_order': 3, 'shape': (12,), }",
    "{'descr': " + "(" * 90 + "'u1'" + ")" * 90 + ", 'fortran_order': False, 'shape': (12,), }",
    "[" * 200,
    "__import__('os').system('true')",
    "{'descr': '|u1'}",
    "",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2**40,), }",
    " " * 9000 + "{'descr': '|u1', 'fortran_order': False, 'shape': (12,), }",
)


def _bytes_of(array: Any) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=True)
    return written.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these members, none of which need be an array."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return written.getvalue()


def change_arrays(random: np.random.Generator, arrays: dict[str, Any]) -> str:
    """Another type, shape or value in one of the arrays."""
    name = pick(random, tuple(arrays))
    array = arrays[name]
    if array.dtype.kind not in "buif" or array.ndim == 0:
        return f"{name}: as it was changed"
    how = pick(
        random, ("dtype", "shape", "value", "drop", "object", "empty", "longer", "groups", "rename", "huge class")
    )
    if how == "dtype":
        dtype = pick(random, DTYPES)
        arrays[name] = np.zeros(array.shape, dtype) if dtype[0] in "SUV" else array.astype(dtype, casting="unsafe")
        how = dtype
    elif how == "shape":
        arrays[name] = pick(random, (array[None], array.ravel(), array[..., None], array[:0], array[..., :0], array.T))
    elif how == "value":
        changed = array.astype(np.float64) if random.random() < 0.5 else array.astype(np.int64)
        value = pick(random, LABELS)
        whole = int(value) if abs(value) < 2**63 else 5
        changed.flat[int(random.integers(changed.size))] = value if changed.dtype.kind == "f" else whole
        arrays[name], how = changed, f"value {value}"
    elif how == "drop":
        del arrays[name]
    elif how == "object":
        arrays[name] = np.array([{"a": 1}] * len(array), dtype=object)
    elif how == "empty":
        arrays[name] = np.array(pick(random, (0, 3.5, "text")))
    elif how == "longer":
        arrays[name] = np.concatenate([array, array])
    elif how == "groups":
        arrays["train_groups"] = np.array([pick(random, TEXTS)[:40] for _ in range(12)]).reshape(-1, 1)
    elif how == "huge class":
        arrays["train_labels"] = np.arange(12) * pick(random, (1, 1000, 10**8))
    else:
        arrays[pick(random, (*NAMES, "extra_images", "../train_images", ""))] = arrays.pop(name)
    return f"{name}: {how}"


def file_of(random: np.random.Generator, arrays: dict[str, Any]) -> tuple[bytes, str]:
    """Arrays as an archive, valid or broken as an archive."""
    members = {f"{name}.npy": _bytes_of(array) for name, array in arrays.items()}
    how = pick(random, ARCHIVES)
    name = pick(random, tuple(members) or ("train_images.npy",))
    if how == "header":
        header = pick(random, HEADERS)
        members[name] = npy(header, bytes(768), pick(random, ((1, 0), (2, 0), (3, 0), (9, 9))))
        how = f"header of {name}: {header[:60]}"
    elif how == "bomb":
        count, written = pick(random, ((400, 400 * 400 * 400), (20_000, 10**8)))
        shape = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 400, 400), }}"
        members["train_images.npy"] = npy(shape, bytes(written))
    elif how in ("lzma", "bzip2"):
        return archive(members, zipfile.ZIP_LZMA if how == "lzma" else zipfile.ZIP_BZIP2), how
    elif how == "strangers":
        members[
            pick(random, ("readme.txt", "train_images", "../../x.npy", "/abs.npy", "a" * 3000, "train_images.npy/"))
        ] = b"x"
    elif how == "many":
        members |= {f"{number}.npy": members[name] if members else b"" for number in range(3000)}
    content = archive(members)
    if how == "bare":
        return _bytes_of(np.zeros((3, 3))), how
    if how == "encrypted":
        for sign in (b"PK\x03\x04", b"PK\x01\x02"):
            shift = 6 if sign == b"PK\x03\x04" else 8
            content = b"".join(
                part if not index else sign + part[: shift - 4] + bytes([part[shift - 4] | 1]) + part[shift - 3 :]
                for index, part in enumerate(content.split(sign))
            )
    elif how == "bytes":
        content, how = change_bytes(random, content)
    elif how == "sizes":
        place = content.rfind(b"PK\x01\x02")
        number = struct.pack("<I", pick(random, (0, 1, 2**31, 2**32 - 1)))
        content = content[: place + 24] + number + content[place + 28 :]
    elif how == "twice":
        content = content + content
    return content, how


def make(random: np.random.Generator, folder: Path) -> Input:
    """One archive, given to the reader of MedMNIST files."""
    from shadow_defense.data.npz import read_npz

    arrays: dict[str, Any] = valid(random)
    changes = [change_arrays(random, arrays) for _ in range(pick(random, (0, 0, 1, 1, 2))) if arrays]
    content, how = file_of(random, arrays)
    path = folder / "set.npz"
    path.write_bytes(content)
    size, classes = pick(random, (None, 8)), pick(random, (None, None, ("a", "b"), ("a",)))

    def give() -> None:
        parts = read_npz(path=path, image_size=size, channels=None, classes=classes)
        assert len(parts.class_names) < 10_000 and int(parts.train.labels.max()) < len(parts.class_names)

    return Input(f"{'; '.join((*changes, how))}; size {size}, classes {classes}", give)


KIND = Kind(make, ("shadow_defense.data.npz",))
