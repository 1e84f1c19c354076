"""Columns say what the records hold, in every form alike."""

from __future__ import annotations

import csv
import io
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_defense.errors import ConfigError
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.columns import score_table
from shadow_defense.report.kit.formatting import MINUS, MISSING, number, plain, signed, with_interval
from shadow_defense.report.kit.metrics import METRICS, reading
from shadow_defense.report.pages.run import metric_table, run_numbers, run_summary
from shadow_defense.report.records.run import RunRecord
from shadow_defense.report.records.scores import Row, ScoreTable


def estimate(mean: float, half: float | None = None) -> Estimate:
    return Estimate(mean, None if half is None else (mean - half, mean + half), 4)


NONE = Row(arm="none", images=4, metrics={"psnr_whole": estimate(20.0, 1.0), "ssim_inside": estimate(0.5, 0.1)})
SHADOW = Row(
    arm="shadow",
    images=4,
    metrics={"psnr_whole": estimate(16.5, 0.5), "ssim_inside": estimate(0.45, 0.15)},
    difference={"psnr_whole": estimate(-3.5, 0.5), "ssim_inside": estimate(-0.05, 0.15)},
)
MEAN_IMAGE = Row(
    arm="mean image", images=1, metrics={"psnr_whole": estimate(21.0)}, difference={"psnr_whole": estimate(1.0)}
)


def test_groups_columns_and_cells() -> None:
    table = metric_table(ScoreTable(attack="inverting", round=3, rows=(NONE, SHADOW, MEAN_IMAGE)))
    assert table.title == "inverting: Round 3"
    assert [column.title for column in table.columns] == ["Arm", "PSNR (dB)", "SSIM", "Images"]
    (whole, rows), (inside, other) = table.groups()
    assert (whole, inside) == ("Whole image", "Inside the foreground")
    assert [mark for mark, _ in rows] == ["", "", "baseline"]
    none, shadow, mean_image = (cells[1] for _, cells in rows)
    assert (plain(none.value), none.difference) == ("20.00 ± 1.00", "")
    assert (plain(shadow.difference), shadow.meaning, shadow.clear) == ("-3.50 ± 0.50", "better protected", True)
    assert (mean_image.value, mean_image.meaning) == ("21.00", "baseline beats attack (no interval)")
    assert [cells[2].value for _, cells in rows] == [MISSING] * 3
    assert other[1][1][2].meaning == "no clear difference"
    assert other[2][1][2].value == MISSING


def test_unknown_metrics_are_shown_under_their_own_name_without_a_reading() -> None:
    first = Row(arm="none", images=2, metrics={"identity_rank": estimate(3.0)})
    other = Row(arm="shadow", images=2, metrics=first.metrics, difference={"identity_rank": estimate(2.0, 1.0)})
    table = metric_table(ScoreTable(attack="a", round=None, rows=(first, other)))
    assert [(column.title, column.about) for column in table.columns[1:-1]] == [("identity rank", "")]
    ((_, rows),) = table.groups()
    assert rows[1][1][1].meaning == "higher"


@given(
    name=st.sampled_from(sorted(METRICS)),
    mean=st.floats(0.01, 50),
    half=st.floats(0, 0.009),
    sign=st.sampled_from([-1, 1]),
)
def test_a_clear_difference_protects_better_when_the_reconstruction_is_farther(
    name: str, mean: float, half: float, sign: int
) -> None:
    metric = METRICS[name]
    said = reading(metric, Estimate(sign * mean, (sign * mean - half, sign * mean + half), 8))
    farther = (sign < 0) == bool(metric.higher_is_closer)
    assert said == ("better protected" if farther else "worse protected")


@given(mean=st.floats(-5, 5), below=st.floats(0, 5), above=st.floats(0, 5))
def test_an_interval_around_zero_is_never_called_a_difference(mean: float, below: float, above: float) -> None:
    interval = (min(mean, -below), max(mean, above))
    assert reading(METRICS["psnr"], Estimate(mean, interval, 8)) == "no clear difference"


@given(st.floats(-100, 100))
def test_numbers_read_back(value: float) -> None:
    for text in (number(value, 3), signed(value, 3)):
        assert float(text.replace(MINUS, "-")) == pytest.approx(value, abs=0.5001e-3)
        assert "-" not in text


def test_rounded_zero_has_no_sign() -> None:
    assert [number(-0.0004), signed(-0.0004), signed(0.0004)] == ["0.000", "0.000", "0.000"]


def test_uneven_intervals_show_both_ends() -> None:
    assert with_interval(Estimate(0.5, (0.1, 0.6), 8)).split() == ["0.500", "[0.100,", "0.600]"]


def test_utility_is_compared_with_the_first_arm(record: RunRecord) -> None:
    none, authors, shadow, _ = record.utilities
    f1 = [arm.test["f1_macro"] for arm in record.arms.values()]
    assert none.utility_difference == {}
    assert f1[0] is not None and f1[1] is not None
    assert authors.utility_difference["f1_macro"].mean == pytest.approx(f1[1] - f1[0])
    assert "auroc" not in shadow.utility and "auroc" not in shadow.utility_difference


def test_csv_holds_every_number_in_full(record: RunRecord) -> None:
    rows = list(csv.DictReader(io.StringIO(run_numbers(record).csv())))
    index = {(r["attack"], r["round"], r["arm"], r["metric"]): r for r in rows}
    assert len(index) == len(rows) == sum(len(row.metrics) for table in record.tables for row in table.rows)
    for table in record.tables:
        for row in table.rows:
            for metric, measured in row.metrics.items():
                found = index[table.attack, "all" if table.round is None else str(table.round), row.arm, metric]
                assert measured.interval is not None
                assert [float(found[k]) for k in ("mean", "low", "high")] == [measured.mean, *measured.interval]
                assert int(found["images"]) == row.images
                if metric in row.difference:
                    assert float(found["difference_mean"]) == row.difference[metric].mean
                else:
                    assert found["difference_mean"] == ""


def test_csv_quotes_names_with_commas(record: RunRecord) -> None:
    row = Row(arm='a, "b"', images=1, metrics=NONE.metrics)
    table = ScoreTable(attack="x", round=1, rows=(row,))
    text = run_numbers(RunRecord(**{**vars(record), "tables": (table,)})).csv()
    assert next(csv.DictReader(io.StringIO(text)))["arm"] == 'a, "b"'


def test_terminal_page_and_document_hold_the_same_values() -> None:
    table = score_table("document", "", (NONE, SHADOW))
    line = next(line for line in table.markdown().splitlines() if "shadow" in line)
    assert [cell.strip() for cell in line.split("|")][1:3] == ["shadow", "16.50 ± 0.50 (-3.50 ± 0.50)\\*"]
    ((_, rows),) = table.groups()
    assert plain(rows[1][1][1].value) == "16.50 ± 0.50"
    printed = score_table("terminal", "", (NONE, SHADOW)).terminal()
    assert [str(cell) for cell in printed.columns[1].cells] == ["20.00 ± 1.00", "16.50 ± 0.50"]


def test_columns_in_which_nothing_stands_are_left_out(record: RunRecord) -> None:
    (table,) = (each for each in run_summary(record) if "gradinversion" not in each.title)
    assert [column.title for column in table.columns] == ["Arm", "PSNR (dB)", "SSIM", "LPIPS", "Macro F1"]


def test_a_data_frame_has_the_columns_of_the_csv(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    table = run_numbers(record)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        table.to_frame()
    pandas: Any = ModuleType("pandas")
    pandas.DataFrame = dict
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    frame = table.to_frame()
    assert list(frame) == table.csv().splitlines()[0].split(",")
    assert len(frame["mean"]) == len(table.rows) and isinstance(frame["mean"][0], float)
