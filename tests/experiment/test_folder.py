"""A plan's folder is of one configuration from its first result on, and of none before."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadow_defense.errors import RunError
from shadow_defense.experiment.folder import open_folder


def test_a_mistyped_first_command_does_not_block_the_right_one(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written = open_folder(folder, "risks", {"data": {"path": "pnuemonia.npz"}})
    open_folder(folder, "risks", {"data": {"path": "pneumonia.npz"}})
    assert "pneumonia.npz" in written.read_text()
    (folder / "store" / "training-1").mkdir(parents=True)
    open_folder(folder, "risks", {"data": {"path": "other.npz"}})
    (folder / "store" / "training-1" / "task.json").write_text("{}")
    with pytest.raises(RunError, match=r"begun with another data\.path \('other\.npz', not 'pneumonia\.npz'\)"):
        open_folder(folder, "risks", {"data": {"path": "pneumonia.npz"}})
    assert "other.npz" in written.read_text()
