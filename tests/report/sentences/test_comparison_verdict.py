"""The verdict says what the numbers say: comparisons in which Shadow wins, loses, or equals its control."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report.comparison_record import estimate, with_front

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.records.comparison import ComparisonRecord, DefenseEntry, Plane, PlanePoint
from shadow_defense.report.records.scores import Row, ScoreTable
from shadow_defense.report.sentences.comparison import comparison_verdict
from shadow_defense.report.sentences.differences import direction, unpaired_difference

Numbers = tuple[float, float, float]
"""PSNR, SSIM, macro F1."""

NONE = (25.0, 0.9, 0.8)
GUESSES = {"mean image": (14.0, 0.4, 0.0), "random update": (9.0, 0.1, 0.0)}


@pytest.fixture
def empty(comparison: ComparisonRecord) -> ComparisonRecord:
    return replace(comparison, failures=(), left_out=(), ablations=())


def crafted(
    empty: ComparisonRecord,
    arms: dict[str, Numbers],
    *,
    half: float = 0.01,
    none: Numbers = NONE,
    attacks: tuple[str, ...] = ("inversion",),
) -> ComparisonRecord:
    """A comparison on one model; ``half`` is half of every interval, in units of SSIM and F1, and in 10 dB."""
    rows = []
    for name, (psnr, ssim, f1) in {"fedavg": none, **arms, **GUESSES}.items():
        row = Row(arm=name, images=8, seeds=3, metrics=_leakage(psnr, ssim, half))
        if name != "fedavg":
            row = replace(row, difference=_leakage(psnr - none[0], ssim - none[1], half))
        if not row.baseline:
            change = {"f1_macro": estimate(f1 - none[2], half)}
            row = replace(row, utility={"f1_macro": estimate(f1, half)}, utility_difference=change)
        rows.append(row)
    tables = tuple(ScoreTable(model="convnet", attack=attack, round=None, rows=tuple(rows)) for attack in attacks)
    entries = {
        name: DefenseEntry(
            defense="shadow" if name in ("shadow", "control") else "none",
            summary="",
            acts_on=(),
            share_bn="all",
            family=name,
            label="",
            placement={"shadow": "targeted", "control": "uniform"}.get(name),
            control="control" if name == "shadow" else None,
        )
        for name in ("fedavg", *arms)
    }
    return replace(empty, defenses=entries, tables=tuple(map(with_front, tables)))


def _leakage(psnr: float, ssim: float, half: float) -> dict[str, Estimate]:
    return {"psnr_whole": estimate(psnr, 10 * half), "ssim_whole": estimate(ssim, half)}


def said(record: ComparisonRecord) -> str:
    return " ".join(comparison_verdict(record))


@pytest.mark.parametrize(
    ("arms", "half", "facts"),
    [
        (
            {"shadow": (13.0, 0.3, 0.795), "control": (18.0, 0.6, 0.7), "noise": (20.0, 0.7, 0.6)},
            0.01,
            [
                "PSNR 25.0 against 14.0 and 9.0, SSIM 0.90 against 0.40 and 0.10",
                "the leak is real",
                "shadow clearly lowered PSNR and SSIM (PSNR -12.0 ± 0.1 dB, SSIM -0.60 ± 0.01)",
                "clearly less through in 1 (shadow under inversion) of 1 pair, clearly more in 0",
                "not paired by image",
                "not clearly changed by shadow (-0.005 ± 0.010)",
                "clearly better in 1 (shadow) of 1 pair",
                "no other defense dominates shadow",
                ": shadow and fedavg.",
            ],
        ),
        (
            {"shadow": (25.0, 0.95, 0.7), "control": (18.0, 0.6, 0.75), "noise": (20.0, 0.7, 0.8)},
            0.01,
            [
                "clearly raised PSNR or SSIM (PSNR 0.0 ± 0.1 dB, SSIM +0.05 ± 0.01)",
                "clearly more in 1 (shadow under inversion)",
                "clearly lower with shadow (-0.100 ± 0.010)",
                "clearly worse in 1 (shadow)",
                "shadow by 3 (fedavg, control and noise)",
                ": control and noise.",
            ],
        ),
        (
            {"shadow": (15.0, 0.4, 0.78), "control": (15.05, 0.405, 0.781)},
            0.01,
            ["in none of 1 pair", "where the noise goes made no difference", "clearly worse in 0."],
        ),
        (
            {"shadow": (18.0, 0.5, 0.7), "control": (22.0, 0.8, 0.6)},
            1.0,
            ["does not clearly beat", "lowered neither PSNR nor SSIM", "in none of 1 pair", "not clearly changed by"],
        ),
        ({"shadow": (25.0, 0.5, 0.8)}, 0.01, ["only one of PSNR and SSIM", "no uniform-noise control"]),
    ],
    ids=["wins", "loses", "equals its control", "wide intervals", "one metric"],
)
def test_the_outcome_is_named_with_its_numbers(
    empty: ComparisonRecord, arms: dict[str, Numbers], half: float, facts: list[str]
) -> None:
    text = said(crafted(empty, arms, half=half))
    assert [fact for fact in facts if fact not in text] == []


def test_an_attack_below_one_guess_proves_no_leak(empty: ComparisonRecord) -> None:
    text = said(crafted(empty, {"shadow": (10.0, 0.2, 0.8)}, none=(13.0, 0.5, 0.8)))
    assert "the leak is real" not in text
    assert "say little there" in text


def test_where_the_attack_fails_nobody_is_ranked(empty: ComparisonRecord) -> None:
    record = crafted(empty, {"shadow": (10.0, 0.2, 0.7), "noise": (9.0, 0.1, 0.8)})
    assert "other defenses dominate" in said(record)
    [table] = record.tables
    rows = tuple(replace(row, on_front=False) for row in table.rows)
    text = said(replace(record, tables=(replace(table, rows=rows),)))
    assert "nobody, since the attack" in text and "dominate" not in text


def test_only_guesses_that_were_measured_are_named(empty: ComparisonRecord) -> None:
    record = crafted(empty, {"shadow": (13.0, 0.3, 0.79)})

    def without(*names: str) -> str:
        rows = tuple(row for row in record.tables[0].rows if row.arm not in names)
        return comparison_verdict(replace(record, tables=(replace(record.tables[0], rows=rows),)))[0]

    assert "random update" not in without("random update") and "mean image" in without("random update")
    assert "nothing to compare inversion with" in without("random update", "mean image")


def test_paired_differences_to_the_control_come_first(empty: ComparisonRecord) -> None:
    record = crafted(empty, {"shadow": (15.0, 0.4, 0.78), "control": (15.05, 0.405, 0.781)})
    paired = _leakage(-0.05, -0.005, 0.001) | {"f1_macro": estimate(-0.001, 0.0005)}
    rows = tuple(
        replace(row, control_difference=paired) if row.arm == "shadow" else row for row in record.tables[0].rows
    )
    text = said(replace(record, tables=(replace(record.tables[0], rows=rows),)))
    for fact in ("clearly less through in 1 (shadow under inversion)", "(paired by image)", "clearly worse in 1 (sha"):
        assert fact in text


def test_many_attacks_and_strengths_stay_short(comparison: ComparisonRecord, empty: ComparisonRecord) -> None:
    sentences = comparison_verdict(comparison)
    for model in comparison.models:
        assert 5 <= sum(sentence.startswith(f"{model}: ") for sentence in sentences) <= 12
    assert "1 cell of the grid failed and 1 pair" in sentences[-1]
    arms = {"shadow": (15.0, 0.4, 0.7), "control": (16.0, 0.5, 0.7), "noise": (14.0, 0.3, 0.8)}
    many = crafted(empty, arms, attacks=tuple("abcdefgh"))
    assert len(comparison_verdict(many)) <= 12
    assert "in 8 (shadow under a, shadow under b, shadow under c, shadow under d and 4 more)" in said(many)
    # What holds for every attack is not said again.
    assert said(many).count("by the means; in brackets") == 1


def test_without_shadow_nothing_is_said_of_it(empty: ComparisonRecord) -> None:
    sentences = comparison_verdict(crafted(empty, {"noise": (15.0, 0.4, 0.7)}))
    assert len(sentences) == 2 and "Shadow" not in " ".join(sentences)


def test_single_round_tables_do_when_there_is_no_other(empty: ComparisonRecord) -> None:
    record = crafted(empty, {"shadow": (13.0, 0.3, 0.79)})
    pooled, single = comparison_verdict(record), replace(record.tables[0], round=1)
    assert comparison_verdict(replace(record, tables=(single,))) == pooled
    nothing = replace(record.tables[0], rows=())
    assert comparison_verdict(replace(record, tables=(single, nothing))) == pooled


def test_nothing_is_said_of_what_was_not_scored(empty: ComparisonRecord) -> None:
    """Cells of the first defense may have failed: the first row is then another's. Or all of them."""
    record = crafted(empty, {"shadow": (13.0, 0.3, 0.795), "noise": (20.0, 0.7, 0.6)})
    rows = tuple(row for row in record.tables[0].rows if row.arm != "fedavg")
    assert "without defense" not in said(replace(record, tables=(replace(record.tables[0], rows=rows),)))
    none = replace(record, tables=(replace(record.tables[0], rows=()),))
    assert comparison_verdict(none) == ["convnet: nothing was scored."]


def test_interval_that_touches_zero_is_not_clear() -> None:
    ends = ((0.0, 2.0), (0.1, 1.9), (-3.0, -0.1))
    assert [direction(Estimate(sum(pair) / 2, pair, 8)) for pair in ends] == [0, 1, -1]
    difference = unpaired_difference(estimate(1.0, 0.3), estimate(0.0, 0.4))
    assert difference is not None and difference.interval is not None
    assert [round(end, 9) for end in difference.interval] == [0.5, 1.5]


def test_lower_ssim_and_higher_lpips_protect() -> None:
    points = [
        PlanePoint(arm=str(privacy), privacy=estimate(privacy), utility=estimate(0.8), on_front=True)
        for privacy in (0.2, 0.6)
    ]
    for metric, better in (("ssim_whole", "0.2"), ("psnr_inside", "0.2"), ("lpips_whole", "0.6")):
        plane = Plane(model="m", attack="a", metric=metric, points=tuple(points))
        assert max(points, key=plane.goodness).arm == better
