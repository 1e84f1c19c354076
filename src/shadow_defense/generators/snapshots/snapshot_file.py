"""The file of a training snapshot, looked at before torch is imported."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.errors import SnapshotError

SIZE_LIMIT = 2 * 2**30
"""Bytes. Official snapshots have at most 0.4 GiB; reading one takes about three times its size in memory."""


def check_file(path: Path) -> None:
    """Raise :class:`SnapshotError` where there is no plain file."""
    if not path.is_file():
        raise SnapshotError(f"{path} is no file: give a training snapshot (.pkl)")


def snapshot_bytes(path: Path, size_limit: int) -> bytes:
    """All that the file holds. Raises :class:`SnapshotError` for none, one that cannot be read, and a larger one."""
    try:
        check_file(path)
        with path.open("rb") as file:
            # Not what the file system says: the file may grow.
            content = file.read(min(path.stat().st_size, size_limit) + 1)
    except OSError as error:
        raise SnapshotError(
            f"cannot read {path}: {error.strerror or error}; give a training snapshot (.pkl)"
        ) from error
    if len(content) > size_limit:
        raise SnapshotError(
            f"{path} has more than {size_limit} bytes: official snapshots are smaller; raise the limit if you trust it"
        )
    return content
