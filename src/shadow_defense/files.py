"""Files that are whole or absent: written under a temporary name and renamed; safetensors and JSON only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from shadow_defense.errors import RunError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block ends without an error.

    Raises :class:`RunError` naming ``path`` when the disk is full or the folder cannot be written.
    """
    # The suffix stays last: writers such as Pillow read the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
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


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link_file(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where there is no such thing; files here are replaced, never changed."""
    with atomic_path(path) as temporary:
        # Left by a process of the same number that was killed, it may already be the source by another name.
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, mend: str = "delete it to have it computed again") -> Any:
    """Read a JSON file. Raises :class:`RunError` naming the file, and ``mend``, when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}; {mend}") from error


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


def read_tensors(
    path: Path, mend: str = "give a file that this project wrote"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata written by :func:`write_tensors`; other safetensors files give empty metadata.

    Raises :class:`RunError` naming the file, and ``mend``, when it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            if not isinstance(metadata, dict):
                raise ValueError("its metadata is no JSON object")
    except (OSError, SafetensorError, json.JSONDecodeError, ValueError) as error:
        raise RunError(f"cannot read {path} as safetensors: {error}; {mend}") from error
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
