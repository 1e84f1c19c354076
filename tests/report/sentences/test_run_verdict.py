"""The verdict of a run follows its numbers, whichever way they point."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shadow_defense.experiment.analysis import score_table
from shadow_defense.experiment.tasks.scoring import ImageScore, Score
from shadow_defense.report.records.run import RunRecord
from shadow_defense.report.records.scores import MEAN_IMAGE, Row, ScoreTable
from shadow_defense.report.sentences.run import attack_sentence, run_verdict


def _row(sample: str, value: float) -> ImageScore:
    return ImageScore(0, 0, sample, {"psnr_whole": float(value), "ssim_whole": value / 100})


def scored(none: float, shadow: float, blank: float, images: int = 2) -> ScoreTable:
    """What the stage makes of three arms that reach these values, a little more in each further image."""
    scores = [
        Score(arm, "ig", 0, "a", tuple(_row(str(index), value + index) for index in range(images)))
        for arm, value in (("none", none), ("shadow", shadow), (MEAN_IMAGE, blank))
    ]
    rows = [Row(arm=arm, images=0, metrics={}) for arm in ("none", "shadow", MEAN_IMAGE)]
    return score_table(scores, rows, "ig", None)


def test_an_attack_below_the_mean_image_proves_no_leak() -> None:
    assert "the leak is real" in attack_sentence(scored(none=30, shadow=12, blank=15))
    assert "proves no leak" in attack_sentence(scored(none=14, shadow=12, blank=15))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((30, 12, 15), ("lowers both PSNR and SSIM", "-18.0 dB", "leaves out zero")),
        ((12, 30, 15), ("clearly lowers neither PSNR nor SSIM", "+18.0 dB", "leaves out zero")),
        ((12, 12, 15), ("clearly lowers neither PSNR nor SSIM", "+0.0 dB", "may be chance")),
        ((30, 12, 15, 1), ("lowers both PSNR and SSIM", "-18.0 dB", "no interval")),
        ((30, 12, 15, 0), ("no image was scored",)),
    ],
)
def test_a_defense_helps_harms_or_neither(record: RunRecord, values: tuple[float, ...], words: tuple[str, ...]) -> None:
    arms = dict(zip(("none", "shadow"), record.arms.values(), strict=False))
    said = run_verdict(replace(record, arms=arms, tables=(scored(*values),)))
    (sentence,) = [each for each in said if each.startswith("'shadow'") and "ig" in each]
    assert [word for word in words if word not in sentence] == []
    cost = 100 * ((arms["shadow"].test["f1_macro"] or 0) - (arms["none"].test["f1_macro"] or 0))
    assert f"{cost:+.1f} points" in said[-1]
