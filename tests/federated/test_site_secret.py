"""A site's secret: drawn once, for one node, for its owner's eyes only."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shadow_defense.errors import RunError
from shadow_defense.federated.site_secret import secret_seed


def key(root: Path, node: str = "partition-0") -> Path:
    return root / "secrets" / f"{node}.key"


def test_it_stays_the_same_and_is_its_own(tmp_path: Path) -> None:
    first = secret_seed(tmp_path / "a", "run", "partition-0")
    assert secret_seed(tmp_path / "a", "run", "partition-0") == first
    others = [("a", "another", "partition-0"), ("a", "run", "node-7"), ("b", "run", "partition-0")]
    seeds = {first, *(secret_seed(tmp_path / root, run, node) for root, run, node in others)}
    assert len(seeds) == 4 and all(seed >= 2**255 for seed in seeds)
    assert key(tmp_path / "a").read_bytes() != key(tmp_path / "a", "node-7").read_bytes()


def test_it_is_hmac_of_the_key(tmp_path: Path) -> None:
    found = secret_seed(tmp_path, "run", "partition-0")
    digest = hmac.new(key(tmp_path).read_bytes(), b"4:site3:run11:partition-0", hashlib.sha256).hexdigest()
    assert found == int(digest, 16) | 1 << 255


def test_names_do_not_run_together(tmp_path: Path) -> None:
    for node in ("a", "ab"):
        secret_seed(tmp_path, "x", node)
    key(tmp_path, "ab").write_bytes(key(tmp_path, "a").read_bytes())
    assert secret_seed(tmp_path, "xa", "ab") != secret_seed(tmp_path, "xab", "a")


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        secret_seed(tmp_path / "new", "run", "partition-0")
    finally:
        os.umask(old)
    assert stat.S_IMODE(key(tmp_path / "new").stat().st_mode) == 0o600
    assert stat.S_IMODE(key(tmp_path / "new").parent.stat().st_mode) == 0o700
    assert [path.name for path in key(tmp_path / "new").parent.iterdir()] == ["partition-0.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666])
def test_one_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    secret_seed(tmp_path, "run", "partition-0")
    key(tmp_path).chmod(mode)
    with pytest.raises(RunError, match=rf"partition-0\.key has mode {mode:04o}.*expected 0600"):
        secret_seed(tmp_path, "run", "partition-0")


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_one_that_is_cut_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    secret_seed(tmp_path, "run", "partition-0")
    key(tmp_path).write_bytes(content)
    with pytest.raises(RunError, match=r"partition-0\.key is damaged"):
        secret_seed(tmp_path, "run", "partition-0")
    assert key(tmp_path).read_bytes() == content


def test_a_link_is_refused(tmp_path: Path) -> None:
    secret_seed(tmp_path, "run", "partition-0")
    key(tmp_path).rename(tmp_path / "elsewhere")
    key(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="has to be a plain file"):
        secret_seed(tmp_path, "run", "partition-0")
    # A link to nothing is no invitation to write there.
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(RunError):
        secret_seed(tmp_path, "run", "partition-0")
    assert not (tmp_path / "elsewhere").exists()


def test_processes_that_come_at_the_same_time_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: secret_seed(tmp_path, "run", "partition-0"), range(64)))
    assert len(set(found)) == 1


@pytest.mark.parametrize("node", ["../elsewhere", "a/b", "", "..", "n" * 300])
def test_a_name_leads_nowhere_else(tmp_path: Path, node: str) -> None:
    secret_seed(tmp_path / "site", "run", node)
    (made,) = tmp_path.rglob("*.key")
    assert made.parent == tmp_path / "site" / "secrets"
