"""Files that are whole or absent, and their owner's alone: written under a temporary name and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from shadow_defense.errors import RunError, shown

if TYPE_CHECKING:
    from torch import Tensor

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Modes of everything written: updates, states and pages hold patients."""

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial(\..*)?")
"""Names of files half written; the middle part cannot be guessed, so that nobody can lay a link in its way."""

LOCK = ".lock"
"""The file in a folder whose holder alone writes there (folder_lock.py)."""

LONGEST_NAME = 120
"""Characters of a name made by :func:`path_name`; with what is put around it, a file system's 255 bytes suffice."""

JSON_BYTES = 100 * 2**20
"""Of the largest JSON file read; the scores of a thousand clients have a tenth of it."""

TENSOR_FILE_BYTES = 4 * 2**30
"""Of the largest file of tensors read; they are mapped, not copied."""

TENSOR_HEADER_BYTES = 10 * 2**20
"""Of the largest safetensors header read: of a hundred thousand tensors."""

PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})
"""Element types, as safetensors names them, that every operation of torch knows."""


def path_name(text: str) -> str:
    """A file or folder's name for ``text`` out of data or a configuration: different for different texts, no path.

    Letters, digits, ``-``, ``_`` and ``.`` (but the first) stay; other bytes become ``%XX``. What is longer than
    :data:`LONGEST_NAME` is cut and ends in its SHA-256.

    >>> path_name("client-1"), path_name("../x"), path_name("St. Mary's")
    ('client-1', '%2E.%2Fx', 'St.%20Mary%27s')
    """
    safe = re.sub(
        r"[^A-Za-z0-9._-]",
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")),
        text,
    )
    safe = f"%2E{safe[1:]}" if safe.startswith(".") else safe or "%"
    if len(safe) <= LONGEST_NAME:
        return safe
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe[: LONGEST_NAME - len(digest) - 1]}~{digest}"


def text_of_path_name(name: str) -> str | None:
    """The text that :func:`path_name` made a name of; None where it was cut.

    >>> text_of_path_name("St.%20Mary%27s")
    "St. Mary's"
    """
    if "~" in name:
        return None
    return "" if name == "%" else unquote_to_bytes(name).decode("utf-8", "surrogatepass")


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it, for their owner alone; what is there stays as it is. Raises ``OSError``."""
    if folder.is_dir():
        return
    make_private_folder(folder.parent)
    # Made by another process meanwhile, it is there all the same.
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield an empty private file beside ``path``; rename it over ``path`` when the block ends without an error.

    Raises :class:`RunError` naming ``path`` when the disk is full or the folder cannot be written.
    """
    # The suffix stays last: writers such as Pillow read the format from it.
    temporary = path.with_name(f".{path.stem[:LONGEST_NAME]}.{secrets.token_hex(8)}.partial{path.suffix}")
    try:
        make_private_folder(path.parent)
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, PRIVATE_FILE))
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"cannot write {path}: {reason}; make the folder writable, free space, or choose another"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written anywhere below ``folder``, which no other process writes into."""
    for place, _, names in os.walk(folder):
        for name in names:
            if TEMPORARY.fullmatch(name):
                Path(place, name).unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but a lock and what killed processes left half written. Raises ``OSError``."""
    return all(entry.name == LOCK or TEMPORARY.fullmatch(entry.name) for entry in folder.iterdir())


def check_regular(path: Path, most_bytes: int) -> None:
    """Raise ``OSError`` or ``ValueError`` unless ``path`` is a file (no pipe, no device) of at most so many bytes."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > most_bytes:
        raise ValueError(f"it has {found.st_size} bytes and at most {most_bytes} are read")


def read_text(path: Path, most_bytes: int) -> str:
    """A file's text in UTF-8. Raises ``OSError`` or ``ValueError``, as for what is not UTF-8."""
    check_regular(path, most_bytes)
    return path.read_text(encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link_file(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where there is no such thing; files here are replaced, never changed."""
    with atomic_path(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            temporary.chmod(PRIVATE_FILE)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ``ValueError`` where it is none, holds NaN, or is nested without end."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, hint: str = "delete it to have it computed again") -> Any:
    """Read a JSON file. Raises :class:`RunError` naming the file, and ``hint``, when it is missing or damaged."""
    try:
        return parse_json(read_text(path, JSON_BYTES))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}; {hint}") from error


def read_object(path: Path, hint: str, *keys: str) -> dict[str, Any]:
    """Read a JSON file that must hold an object with at least ``keys``; errors as in :func:`read_json`."""
    record = read_json(path, hint)
    if not isinstance(record, dict):
        raise RunError(f"{path} holds a {type(record).__name__}: expected an object of {', '.join(keys)}; {hint}")
    for key in keys:
        if key not in record:
            raise RunError(f"{path} has no '{key}': expected an object of {', '.join(keys)}; {hint}")
    return record


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named tensors as safetensors, with ``metadata`` as one JSON string under the key ``json``."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"json": json.dumps(metadata or {}, allow_nan=False)})
        except SafetensorError as error:
            # What the system refused comes in the library's own type.
            raise OSError(str(error)) from error


def check_tensor_file(path: Path) -> None:
    """Raise ``OSError`` or ``ValueError`` where a safetensors file's header is not to be given to the library."""
    check_regular(path, TENSOR_FILE_BYTES)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > TENSOR_HEADER_BYTES:
            raise ValueError(f"its header is said to have {length} bytes and at most {TENSOR_HEADER_BYTES} are read")
        header = parse_json(file.read(length).decode("utf-8"))
    for name, entry in header.items() if isinstance(header, dict) else ():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if name != "__metadata__" and kind not in PLAIN_TYPES:
            raise ValueError(f"its tensor '{shown(name)}' is of type {shown(kind)}: save plain numbers")


def read_tensors(
    path: Path, hint: str = "give a file that this project wrote"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata written by :func:`write_tensors`; other safetensors files give empty metadata.

    Raises :class:`RunError` naming the file, and ``hint``, when it is missing or damaged.
    """
    from safetensors import safe_open

    try:
        check_tensor_file(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = parse_json((file.metadata() or {}).get("json", "{}"))
            if not isinstance(metadata, dict):
                raise ValueError("its metadata is no JSON object")
    except Exception as error:  # the library's own errors have no common base
        raise RunError(f"cannot read {path} as safetensors: {error}; {hint}") from error
    return tensors, metadata


def flatten_tensors(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Flatten nested dicts of tensors to one dict with keys joined by ``::``.

    >>> import torch
    >>> list(flatten_tensors({"a": {"b": torch.zeros(1)}, "c": torch.zeros(1)}))
    ['a::b', 'c']
    """
    flat: dict[str, Tensor] = {}
    for key, value in nested.items():
        name = f"{prefix}::{key}" if prefix else key
        if isinstance(value, Mapping):
            flat.update(flatten_tensors(value, name))
        else:
            flat[name] = value
    return flat


def nest_tensors(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of :func:`flatten_tensors`; an empty inner dict does not survive the round trip."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("::")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested
