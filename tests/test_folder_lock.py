"""One process at a time writes into a folder; what killed ones left goes, and nobody else's files do."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from shadow_defense.errors import RunError
from shadow_defense.files import LOCK, is_empty
from shadow_defense.folder_lock import holding

HALF = ".update.0123456789abcdef.partial.safetensors"


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[int]:
    """The number of a process that holds ``folder`` until the block ends, when it is killed."""
    code = (
        "import sys, time, pathlib; from shadow_defense.folder_lock import holding\n"
        "with holding(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process.pid
        finally:
            process.kill()


def test_the_second_is_told_who_is_there_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held_elsewhere(folder) as number:
        with (
            pytest.raises(RunError, match=rf"run is in use by process {number} on \S+ since 2\d\d\d-"),
            holding(folder),
        ):
            raise AssertionError("two at once")
        (folder / HALF).write_text("a patient")
    assert (folder / LOCK).exists()
    with holding(folder):
        assert not (folder / HALF).exists()
        (folder / "config.yaml").write_text("seed: 0")
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_who_holds_it_may_hold_it_again_and_another_thread_may_not(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads, holding(tmp_path):
        with holding(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()

        def enter() -> None:
            with holding(tmp_path):
                raise AssertionError("two at once")

        with pytest.raises(RunError, match="in use by process"):
            threads.submit(enter).result()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_private_and_goes_where_nothing_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with holding(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / LOCK).stat().st_mode) == 0o600
        assert is_empty(folder)
    assert not folder.exists()
    folder.mkdir(parents=True)
    with holding(folder):
        pass
    assert list(folder.iterdir()) == []


def test_a_failed_block_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), holding(tmp_path):
        (tmp_path / HALF).write_text("from a worker that was ended")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    for folder in (tmp_path / "file", tmp_path, tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match="cannot be used"), holding(folder):
            pass
    assert not (tmp_path / "elsewhere").exists()
