"""Shapes are checked where asked for; drawn examples are the same everywhere; folders that some machines lack skip."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# What is made while tests are collected stays: to look through it for garbage takes a third of that time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# No test cuts the power: thousands of files need not be waited for until they are on the disk.
os.fsync = lambda file: None

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

if os.environ.get("CHECK_SHAPES"):
    from tests.shapes import check_shapes

    check_shapes(
        [
            ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
            for path in SOURCE.rglob("*.py")
            if "jaxtyping" in path.read_text(encoding="utf-8")
        ]
    )


# Whether a test passes depends on the code alone: not on the machine's load, nor on the day's random numbers.
hypothesis.settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")


def pytest_itemcollected(item: pytest.Item) -> None:
    """`make test` looks for engines there alone."""
    if item.get_closest_marker("engine") is not None and ROOT / "tests" / "federated" not in item.path.parents:
        raise pytest.UsageError(f"{item.nodeid} starts an engine: it belongs below tests/federated")


_CHECKED = set[str]()
"""The tests of which a case has run with its shapes checked."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same draws of networks that no seed is given for, whatever ran before; shapes in the first case of each test,
    and not in slow ones, which call the same functions a thousand times."""
    import torch

    torch.default_generator.manual_seed(0)
    test = item.nodeid.partition("[")[0]
    passed_over = test in _CHECKED or item.get_closest_marker("slow") is not None
    _CHECKED.add(test)
    jaxtyping.config.update("jaxtyping_disable", passed_over)


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


@pytest.fixture
def one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the processor as they lie on any device: channels last, which are its own alone, sums differ."""
    from shadow_defense.models import simulated_gradient

    monkeypatch.setattr(simulated_gradient, "channels_last", lambda tensor: tensor)
