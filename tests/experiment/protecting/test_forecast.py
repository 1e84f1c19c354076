"""How long a protection takes is said before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.experiment.protecting import forecast as forecasting
from shadow_defense.experiment.protecting import protecting
from shadow_defense.experiment.protecting.forecast import forecast
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.protecting import protect_data
from shadow_defense.experiment.protecting.settings import protect_preset
from shadow_defense.progress import Progress
from tests.experiment.protecting.conftest import request_for

PUBLIC = PublicImages(torch.zeros(240, 1, 8, 8, dtype=torch.uint8), None, 1)


def test_it_is_what_a_step_takes_times_steps_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def passes(seconds: float) -> Any:
        def trained(*given: object, **more: object) -> None:
            nonlocal now
            now += seconds

        return trained

    monkeypatch.setattr(forecasting.time, "perf_counter", lambda: now)
    monkeypatch.setattr(forecasting, "train_remover", passes(2.0))
    monkeypatch.setattr(forecasting, "train_classifier", passes(0.5))
    # Two networks of 700 steps on 32 images, where a step on 8 takes 2 s; 15 epochs of 240 images, where 8 take half.
    assert forecast(PUBLIC, protect_preset("recommended"), classifier=True) == {
        "removers": 2 * 700 * 4 * 2.0,
        "classifier": 15 * 30 * 0.5,
    }
    assert forecast(PUBLIC, protect_preset("decoy", remover_steps=50), classifier=False) == {"removers": 3 * 50 * 8.0}


def test_the_trainings_that_it_measures_run_on_such_images() -> None:
    found = forecast(PUBLIC, protect_preset("recommended", device="cpu"), classifier=True)
    assert min(found.values()) > 0


def test_it_is_told_before_anything_is_trained_and_not_of_what_is_done(
    hospital: Path, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    out, heard = tmp_path / "out", list[set[str]]()
    out.mkdir()

    def tell(seconds: Mapping[str, float]) -> None:
        heard.append({*seconds, *(path.suffix for path in out.glob("*.npz"))})

    def protect(**changes: Any) -> None:
        request = request_for(hospital / "private.npz", public=str(hospital / "public.npz"), **changes)
        protect_data(request, out, command="shadow-defense protect", progress=Progress(), tell=tell)

    def stopped(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(protecting, "audit_protection", stopped)
        protect()
    protect()
    protect()
    # What goes on has its directions already; what is done is told again without a forecast.
    assert heard == [{"removers", "classifier"}, {"removers", ".npz"}]
