"""Shapes of tensors are checked in every test; folders that only some machines have are fixtures that skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before the package's modules are imported: annotations are checked where functions are defined.
install_import_hook("shadow_defense", "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The conformance cases: of SHADOW_DEFENSE_CONFORMANCE, else beside the checkout, else the small ones kept here."""
    given = os.environ.get("SHADOW_DEFENSE_CONFORMANCE")
    beside = ROOT.parent / "shared" / "conformance"
    kept = Path(__file__).parent / "conformance"
    folder = Path(given) if given else beside if beside.is_dir() else kept
    if not folder.is_dir():
        pytest.skip(f"no conformance cases at {folder}: set SHADOW_DEFENSE_CONFORMANCE")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real medical images, from SHADOW_DEFENSE_DATA or beside the checkout."""
    folder = Path(os.environ.get("SHADOW_DEFENSE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no medical images at {folder}: set SHADOW_DEFENSE_DATA")
    return folder
