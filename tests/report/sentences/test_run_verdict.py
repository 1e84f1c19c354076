"""The verdict of a run follows its numbers, whichever way they point."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.report.sights import sight

from shadow_defense.experiment.analysis import score_table
from shadow_defense.experiment.tasks.scoring import ImageScore, Score
from shadow_defense.report.records.run import BEST_REMOVER, RunRecord
from shadow_defense.report.records.scores import MEAN_IMAGE, Row, ScoreTable
from shadow_defense.report.sentences.run import arm_sentence, attack_sentence, by_chance, cost_sentence


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
    assert "the leak is real" in attack_sentence(scored(none=30, shadow=12, blank=15), "No defense")
    assert "proves no leak" in attack_sentence(scored(none=14, shadow=12, blank=15), "No defense")


def test_one_image_is_never_clear() -> None:
    assert "not clearly" in attack_sentence(scored(none=30, shadow=12, blank=15, images=1), "No defense")


@pytest.mark.parametrize(
    ("ssims", "said"),
    [
        ((0.9, 0.8), "2 of 2 images recognisable"),
        ((0.9, 0.4), "1 of 2 images recognisable, 1 partly"),
        ((0.4, 0.2), "none of 2 images recognisable, 1 partly"),
        ((0.2, 0.1), "none of 2 images recognisable ("),
    ],
)
def test_an_arm_is_what_is_left_of_its_images(record: RunRecord, ssims: tuple[float, ...], said: str) -> None:
    sights = tuple(
        sight("shadow", "ig", ssim, client="a", sample_id=str(place), round=1) for place, ssim in enumerate(ssims)
    )
    sentence = arm_sentence(replace(record, sights=sights), "shadow")
    assert sentence.startswith(f"Shadow: {said}")
    arms = record.arms
    cost = 100 * ((arms["shadow"].test["f1_macro"] or 0) - (arms["no defense"].test["f1_macro"] or 0))
    assert f"{cost:+.1f} points" in sentence


def test_the_closest_of_several_attackers_counts(record: RunRecord) -> None:
    sights = tuple(
        sight("shadow", attack, ssim, client="a", sample_id="1", round=1)
        for attack, ssim in (("ig", 0.2), (BEST_REMOVER, 0.9))
    )
    sentence = arm_sentence(replace(record, sights=sights), "shadow")
    assert "1 of 1 image recognisable (closest: best remover, SSIM 0.90" in sentence


@pytest.mark.parametrize(("auroc", "learnt"), [(0.43, False), (0.9, True)])
def test_what_a_model_that_learnt_nothing_loses_is_no_cost(record: RunRecord, auroc: float, learnt: bool) -> None:
    first = next(iter(record.arms))
    arm = record.arms[first]
    last = replace(arm.history[-1], test={**arm.test, "f1_macro": 0.4, "auroc": auroc})
    trained = replace(arm, history=(*arm.history[:-1], last))
    changed = replace(
        record, arms={**record.arms, first: trained}, data=replace(record.data, classes=("well", "ill"), test=40)
    )
    said = cost_sentence(changed, record.arms["shadow"])
    assert ("has not learnt the task (AUROC 0.43)" in said) is not learnt
    assert ("one training: no interval" in said) is learnt


def test_guesses_pass_the_bound_of_chance_in_one_case_of_twenty() -> None:
    """Of 40 images, 20 of each class, ranked at random."""
    places = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(seed)) for seed in range(2000)])
    above = places[:, :20].double().sum(dim=1) - 190
    assert float((above / 400 > by_chance(40)).double().mean()) == pytest.approx(0.05, abs=0.012)
