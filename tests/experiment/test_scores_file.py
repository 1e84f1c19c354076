"""``scores.json``: a run reads its own, and no other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shadow_defense.config import config_from
from shadow_defense.errors import RunError
from shadow_defense.experiment.exhibits import read_scores, write_scores
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.scoring import ImageScore, Score


@pytest.fixture
def run(tiny: dict[str, Any], tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", config_from(tiny))


@pytest.fixture
def scores(run: Run) -> list[dict[str, Any]]:
    """As they are written."""
    row = ImageScore(0, 0, run.client("client-1").train.sample_ids[0], {"ssim_inside": 0.5})
    write_scores(run, [Score("fedavg", "ig", 0, "client-1", (row,))])
    return json.loads((run.folder / "scores.json").read_text())


def test_a_run_reads_its_own(run: Run) -> None:
    rows = (ImageScore(0, 0, run.client("client-1").train.sample_ids[0], {"psnr_whole": 9.5}),)
    scores = [Score("fedavg", "ig", 0, "client-1", rows, 0.25, 2.0, ("labels were guessed",))]
    write_scores(run, scores)
    assert read_scores(run, "again") == scores


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda scores: scores.append(5), "1: input should be"),
        (lambda scores: scores[0].pop("client"), "client"),
        (lambda scores: scores[0].update(client="client-9"), "client-9"),
        (lambda scores: scores[0].update(attack="other"), "other"),
        (lambda scores: scores[0].update(arm="other"), "no arm 'other'"),
        (lambda scores: scores[0].update(arm="shadow"), "'fedavg', which 'shadow' is compared with, was not scored"),
        (lambda scores: scores[0].update(rows={}), "rows"),
        (lambda scores: scores[0]["rows"][0].update(sample_id="elsewhere"), "elsewhere"),
        (lambda scores: scores[0]["rows"][0].update(reconstruction=7), "reconstruction 7"),
        (lambda scores: scores[0]["rows"][0].update(reconstruction="x"), "reconstruction"),
        (lambda scores: scores[0]["rows"][0]["metrics"].update(ssim_inside="dark"), "ssim_inside"),
        (lambda scores: scores[0]["rows"][0].pop("metrics"), "metrics"),
    ],
)
def test_another_shape_is_one_line(
    run: Run, scores: list[dict[str, Any]], spoil: Callable[[Any], Any], named: str
) -> None:
    changed = copy.deepcopy(scores)
    spoil(changed)
    (run.folder / "scores.json").write_text(json.dumps(changed))
    with pytest.raises(RunError, match=f"{named}.*; again$"):
        read_scores(run, "again")
