"""A run small enough for a test, with every stage in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiment.audit_command import Audit, write_files

TINY: dict[str, Any] = {
    "title": "tiny",
    "data": {"source": "faces", "image_size": 16, "split": {"kind": "sizes", "sizes": [1, 1, 6]}},
    "model": {"name": "convnet", "width": 8, "activation": "gelu"},
    "generator": {"z_dim": 8, "width": 4, "steps": 6, "batch_size": 4, "save_every": 2},
    "training": {"rounds": 3, "learning_rate": 0.05},
    "arms": {
        "fedavg": {"defense": "none"},
        "shadow": {"defense": "shadow", "options": {"latent_iterations": 3, "strength": 1.0}},
    },
    "attacks": {"ig": {"attack": "inverting-gradients", "options": {"iterations": 8}, "longest_client": 1}},
    "metrics": {"lpips": None},
    "workers": 2,
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    return yaml.safe_load(yaml.safe_dump(TINY))


@pytest.fixture
def tiny_file(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


NUMBERS = ("arms", "tables", "verdict")


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every run of one configuration: everything measured but the time it took."""
    kept = {key: results[key] for key in NUMBERS}
    for arm in kept["arms"].values():
        for entry in arm["history"]:
            entry.pop("seconds", None)
    return kept


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has who audits one update from its files."""
    return write_files(tmp_path_factory.mktemp("audit"))


@pytest.fixture
def audit(files: Path, tmp_path: Path) -> Audit:
    return Audit(files, tmp_path / "out")
