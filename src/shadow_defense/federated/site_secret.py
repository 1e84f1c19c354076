"""A site's own secret, from which its draws in a deployment come: who knows a seed can take a defense's noise off."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.files import make_private_folder, path_name

SECRET_BYTES = 32


def secret_seed(root: Path, run: str, node: str) -> int:
    """A seed of 256 bits that only this node of the site knows, for one run.

    ``HMAC-SHA-256(secret, run, node)``, of a secret that is drawn from the system's randomness when it is first asked
    for, one a node, in ``root/secrets``. Nodes that share a folder therefore draw differently, and no number of a
    configuration, of which the server knows all, has a part in it.

    Raises:
        RunError: where the file can be read by others, is no file of its owner's, or is cut short.
    """
    path = root / "secrets" / f"{path_name(node)}.key"
    key = _read(path) if path.exists() else _create(path)
    words = "".join(f"{len(name)}:{name}" for name in ("site", run, node))
    # The highest bit marks it, so that all of its bits count in every draw.
    return int.from_bytes(hmac.digest(key, words.encode(), hashlib.sha256), "big") | 1 << 255


def site_seed(root: Path) -> int:
    """A seed of 256 bits that only this site knows, for what it draws once for all runs; errors as above."""
    return secret_seed(root, "protect", "site")


def _create(path: Path) -> bytes:
    """Whole or not at all, and once: of two processes that come at the same time both get the same."""
    try:
        make_private_folder(path.parent)
        draft = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.partial")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(file, "wb") as opened:
                opened.write(secrets.token_bytes(SECRET_BYTES))
                opened.flush()
                os.fsync(opened.fileno())
            # Unlike renaming, a second name is refused where there is one already.
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot write the site's secret {path}: {error.strerror}; make the folder writable, or choose another"
        ) from error
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(file, "rb") as opened:
            found = os.fstat(opened.fileno())
            key = opened.read(SECRET_BYTES + 1)
    except OSError as error:
        raise RunError(f"cannot read the site's secret {path}: {error.strerror}; it has to be a plain file") from error
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise RunError(
            f"the site's secret {path} has mode {stat.S_IMODE(found.st_mode):04o} and owner {found.st_uid}: expected "
            "0600 and the site's own user; if others may have read it, delete it and begin a run of another name"
        )
    if len(key) != SECRET_BYTES:
        raise RunError(
            f"the site's secret {path} is damaged: restore it from a copy, or delete it and begin a run of another name"
        )
    return key
