"""Who stands on the front of privacy and utility, and where nobody does."""

from __future__ import annotations

import pytest

from shadow_defense.experiment.analysis import with_front
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.records.comparison import plane_of
from shadow_defense.report.records.scores import MEAN_IMAGE, Row, ScoreTable


def _row(arm: str, ssim: float, f1: float | None, difference: Estimate | None = None) -> Row:
    metrics, utility = (
        {"ssim_whole": Estimate(ssim, None, 4)},
        {} if f1 is None else {"f1_macro": Estimate(f1, None, 4)},
    )
    return Row(
        arm=arm,
        images=4,
        metrics=metrics,
        utility=utility,
        difference={} if difference is None else {"ssim_whole": difference},
    )


@pytest.mark.parametrize(
    ("less", "front"),
    [
        (Estimate(-0.5, (-0.6, -0.4), 4), ["none", "strong"]),
        # The mean image is as close as the attack, or closer: whoever leaks less to it, leaks less to nobody.
        (Estimate(-0.1, (-0.3, 0.1), 4), []),
        (Estimate(0.2, (0.1, 0.3), 4), []),
        (Estimate(0.2, None, 1), []),
        (Estimate(-0.5, None, 1), ["none", "strong"]),
        (None, ["none", "strong"]),
    ],
)
def test_an_attack_that_fails_ranks_nothing(less: Estimate | None, front: list[str]) -> None:
    rows = (
        _row("none", 0.9, 0.8),
        _row("strong", 0.3, 0.7),
        _row("worse", 0.5, 0.6),
        _row(MEAN_IMAGE, 0.4, None, less),
    )
    table = with_front(ScoreTable(attack="ig", round=None, rows=rows))
    assert [row.arm for row in table.rows if row.on_front] == front
    assert plane_of(table).ranked is bool(front)
