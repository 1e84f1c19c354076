"""Red, amber, green and unknown follow from what was found, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report.sentences.test_audit_sentences import CLEAN

from shadow_defense.report.records.audit import Assessment, AttackEnd, Facts, RiskRow
from shadow_defense.report.sentences.audit_assessment import assess
from shadow_defense.report.sentences.audit_diagnosis import diagnose

HIDDEN = replace(CLEAN, zeros=0.9)


def ended(ssim: float | None, mean_image: float | None = 0.3) -> AttackEnd:
    rows = (
        () if ssim is None else (RiskRow(reconstruction=0, image=2, ssim=ssim, psnr=9.0, mean_image_ssim=mean_image),)
    )
    return AttackEnd(rows=rows)


def found(
    *ssims: float | None, facts: Facts = CLEAN, exceeded: tuple[str, ...] = (), not_known: tuple[str, ...] = ()
) -> Assessment:
    attacks = {f"attack-{place}": ended(ssim) for place, ssim in enumerate(ssims)}
    return assess(
        attacks, facts, diagnose(facts), exceeded=exceeded, not_known=not_known, not_tried={"ggl": "another attack"}
    )


@pytest.mark.parametrize(
    ("assessment", "status", "said"),
    [
        (found(0.1, 0.9), "red", "gives image 3 away: attack-1"),
        (found(0.1, exceeded=("image 1",)), "red", "above the limit"),
        (found(0.1, 0.45), "amber", "Something of image 3 shows: attack-1"),
        # Nothing hides: that two searches failed says nothing of a third.
        (found(0.1, 0.2), "amber", "nothing measured in the update keeps a better one"),
        (found(0.1, 0.2, facts=HIDDEN), "green", "these attacks alone"),
        (found(0.1, facts=HIDDEN, not_known=("psnr",)), "unknown", "limit"),
        (found(0.1, facts=replace(HIDDEN, optimiser=None)), "unknown", "optimiser was not given"),
        (found(0.9, facts=replace(HIDDEN, optimiser=None)), "red", "gives image 3 away"),
        (found(None), "unknown", "expect that they can be rebuilt"),
        (found(None, facts=HIDDEN), "unknown", "only a comparison tells"),
    ],
)
def test_status(assessment: Assessment, status: str, said: str) -> None:
    assert assessment.status == status
    assert said in assessment.headline


def test_a_chest_that_looks_like_the_mean_chest_is_not_rebuilt() -> None:
    """SSIM of 0.65 is little where the mean image has 0.6: the same value counts against another mean image."""
    for mean_image, status in ((0.6, "amber"), (0.2, "red"), (None, "red")):
        end = {"dlg": ended(0.65, mean_image)}
        assert assess(end, HIDDEN, diagnose(HIDDEN), not_tried={}).status == status


def test_what_to_do_next_mends_what_is_missing() -> None:
    assert any("--truth" in step for step in found(None).next_steps)
    assert any("--optimiser" in step for step in found(0.1, facts=replace(CLEAN, optimiser=None)).next_steps)
    assert any("shadow-defense protect" in step for step in found(0.9).next_steps)
    assert any("--attack ggl" in step for step in found(0.1).next_steps)
