"""The benchmark that fills the table of docs/attacks.md: nothing is missing, and what it says of its entries."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from shadow_defense.attacks import build
from shadow_defense.errors import ThreatModelError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("attacks_on_defenses")


def test_every_attack_of_the_registry_is_in_the_table(script: ModuleType) -> None:
    assert {column.attack for column in script.ATTACKS.values()} == set(build.ATTACKS)
    for column in script.ATTACKS.values():
        assert column.model in script.MODELS
        assert column.settings(adaptive=False).adaptive is None


def test_no_threat_model_has_a_model_of_its_own_and_knows_the_defense(script: ModuleType) -> None:
    for label, column in script.ATTACKS.items():
        if label == "robbing-the-fed":
            with pytest.raises(ThreatModelError, match="reads defense"):
                column.settings(adaptive=True)
        else:
            assert column.settings(adaptive=True).threat_model == "adaptive server"


def test_means_refusals_and_gaps_by_hand(script: ModuleType) -> None:
    entries = {
        ("none", "a"): [{"psnr": 10.0, "ssim": 0.2}, {"psnr": 21.0, "ssim": 0.4}],
        ("noise", "a"): [{"refused": "too loud"}, {"psnr": 21.0, "ssim": 0.4}],
        ("noise", "b"): [{"refused": "too loud"}],
    }
    reasons: list[str] = []
    assert script.table(entries, ("none", "noise"), ("a", "b"), reasons) == [
        "| PSNR dB / SSIM | a | b |",
        "|---|---|---|",
        "| none | 15.5 / 0.30 | - |",
        "| noise | refused [1] | refused [1] |",
    ]
    assert reasons == ["too loud"]
