"""A run with images that are protected once hands them to removers, and shows the closest that comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.config import config_from
from shadow_defense.experiment.exhibits import collect_patients
from shadow_defense.experiment.plans.run import STAGES, read_results
from shadow_defense.experiment.run import Run
from shadow_defense.metrics.ssim import ssim
from shadow_defense.progress import Progress
from shadow_defense.report.records.run import BEST_REMOVER


def test_the_worst_case_of_a_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"]["public_fraction"] = 0.5
    tiny["training"]["rounds"] = 1
    tiny["attacks"]["ig"]["options"] = {"iterations": 1}
    white = {"texture": "white", "strength": 0.05}
    tiny["arms"] = {"plain": {"defense": "none"}, "once": {"defense": "protect-once+clip", "options": {}}}
    tiny["arms"]["once"]["options"] = {"protect-once": white}
    run = Run.create(tmp_path / "run", config_from({**tiny, "workers": 0}))
    for stage in STAGES.values():
        stage(run, Progress())
    record = read_results(run)
    assert set(record.closest("plain", [BEST_REMOVER])) == set()
    sights = record.closest("once", [BEST_REMOVER])
    assert {sight.client for sight in sights.values()} == {"client-1", "client-2"}
    # One iteration of an attack finds nothing, and noise this weak hides nothing: only the worst case says so.
    assert {sight.recognition for sight in record.closest("once", ["ig"]).values()} == {"not recognisable"}
    assert {sight.recognition for sight in record.closest("once").values()} == {"recognisable"}
    assert record.arms["once"].title == "Once" and record.arms["plain"].title == "No defense"
    patients = collect_patients(run, record)
    assert [patient.client for patient in patients] == ["client-1", "client-2"]
    for patient in patients:
        trained_on = patient.explained[1]["once"].protected
        removed = patient.rebuilt["once", BEST_REMOVER]
        assert trained_on is not None
        similar = [float(ssim(each[None], patient.original[None])[0]) for each in (removed, trained_on)]
        # What is handed over is what was trained on, so that the closest is never further off than that.
        assert similar[0] >= similar[1] - 1e-4
        assert sights[patient.sample_id].ssim == pytest.approx(similar[0], abs=1e-5)
        assert not torch.equal(removed, patient.original)
    assert "best remover" in run.report_path.read_text()
