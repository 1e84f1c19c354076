"""What a protected image gives away is known before the first update, and computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.errors import DefenseError
from shadow_defense.experiment import handed_over
from shadow_defense.experiment.handed_over import protecting_once
from shadow_defense.experiment.self_audit import settings_of_site
from shadow_defense.experiment.worst_case_gate import WorstCaseGate
from shadow_defense.federated.update import ModelUpdate
from tests.defenses.test_protect_once import NORMALISATION, OWN, PUBLIC, defense, prepared

UPDATE = ModelUpdate({"w": torch.ones(1)}, 6, 3, 0, "site-1")


def gate(folder: Path, limit: str, strength: float) -> WorstCaseGate:
    settings = DefenseSettings(defense="protect-once", options={"texture": "white", "strength": strength})
    made = prepared(settings.build(Resources(None, NORMALISATION, PUBLIC, 2, "site-1", 0)))
    return WorstCaseGate(settings_of_site(limit), made, OWN, PUBLIC.unit_images().mean(dim=0), folder)


def test_weak_noise_stays_at_home_and_strong_noise_passes(tmp_path: Path) -> None:
    """Noise of 0.05 is at 26 dB as it is; of 3 a remover is left with little more than the mean image."""
    weak, strong = gate(tmp_path / "weak", "psnr=30", 0.05), gate(tmp_path / "strong", "psnr=30", 3.0)
    with pytest.raises(DefenseError, match=r"finds psnr .* of image 'own/.' in its protected image, above 30"):
        weak(UPDATE, {})
    assert 5 < strong(UPDATE, {})["self_audit_psnr"] < 30


def test_it_is_computed_once_for_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gate(tmp_path, "ssim=0.99", 3.0)(UPDATE, {})
    asked: list[Any] = []
    monkeypatch.setattr(handed_over, "removers_for", lambda *given, **named: asked.append(given) or {})
    assert gate(tmp_path, "ssim=0.99", 3.0)(UPDATE, {}) == first
    assert not asked
    gate(tmp_path, "ssim=0.99", 2.0)(UPDATE, {})
    assert len(asked) == 1


def test_it_is_found_in_a_combination() -> None:
    both = DefenseSettings(defense="protect-once+clip", options={"protect-once": {"texture": "white"}})
    made = both.build(Resources(None, NORMALISATION, PUBLIC, 2, "site-1", 0))
    assert protecting_once(made) is made.parts["protect-once"]  # type: ignore[attr-defined]
    assert protecting_once(defense("white")) is not None
    assert protecting_once(DefenseSettings().build(Resources(None, NORMALISATION, PUBLIC, 2, "site-1", 0))) is None
