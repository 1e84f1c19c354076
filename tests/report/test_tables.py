"""Tables say what results.json says."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_defense.report.content import Content
from shadow_defense.report.kit.formatting import METRICS, MINUS, MISSING, number, reading, signed, with_interval
from shadow_defense.report.pages.run_csv import COLUMNS, results_csv
from shadow_defense.report.pages.run_tables import metric_table, utility_table


def _measured(mean: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "interval": None if low is None else [low, high]}


TABLE: dict[str, Any] = {
    "attack": "inverting gradients",
    "round": 3,
    "rows": [
        {
            "arm": "none",
            "images": 4,
            "metrics": {"psnr_whole": _measured(20.0, 19.0, 21.0), "ssim_inside": _measured(0.5, 0.4, 0.6)},
            "difference": None,
        },
        {
            "arm": "shadow",
            "images": 4,
            "metrics": {"psnr_whole": _measured(16.5, 16.0, 17.0), "ssim_inside": _measured(0.45, 0.3, 0.6)},
            "difference": {"psnr_whole": _measured(-3.5, -4.0, -3.0), "ssim_inside": _measured(-0.05, -0.2, 0.1)},
        },
        {
            "arm": "mean image",
            "images": 1,
            "metrics": {"psnr_whole": _measured(21.0)},
            "difference": {"psnr_whole": _measured(1.0)},
        },
    ],
}


def test_groups_columns_and_cells() -> None:
    table = metric_table(TABLE)
    assert (table.title, table.pooled) == ("Round 3", False)
    assert [column.title for column in table.columns] == ["PSNR (dB)", "SSIM"]
    assert [group.title for group in table.groups] == ["Whole image", "Inside the foreground"]
    whole, inside = table.groups
    none, shadow, mean_image = (row.cells[0] for row in whole.rows)
    assert none.value.split() == ["20.00", "±", "1.00"]
    assert none.difference == ""
    assert shadow.difference.split() == [f"{MINUS}3.50", "±", "0.50"]
    assert shadow.meaning == "better protected"
    assert mean_image.value == "21.00"
    assert mean_image.meaning == "guess beats attack (no interval)"
    assert inside.rows[1].cells[1].meaning == "no clear difference"
    assert inside.rows[2].cells[1].value == MISSING
    assert whole.rows[0].cells[1].value == MISSING
    assert [row.baseline for row in whole.rows] == [False, False, True]


def test_unknown_metrics_are_shown_under_their_own_name_without_a_reading() -> None:
    row = {"arm": "none", "images": 2, "metrics": {"identity_rank": _measured(3.0)}, "difference": None}
    other = row | {"arm": "shadow", "difference": {"identity_rank": _measured(2.0, 1.0, 3.0)}}
    table = metric_table({"attack": "a", "round": None, "rows": [row, other]})
    assert table.pooled
    assert [(column.title, column.direction) for column in table.columns] == [("identity rank", "")]
    assert table.groups[0].rows[1].cells[0].meaning == "higher"


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
    said = reading(metric, sign * mean, (sign * mean - half, sign * mean + half))
    farther = (sign < 0) == bool(metric.higher_is_closer)
    assert said == ("better protected" if farther else "worse protected")


@given(mean=st.floats(-5, 5), below=st.floats(0, 5), above=st.floats(0, 5))
def test_an_interval_around_zero_is_never_called_a_difference(mean: float, below: float, above: float) -> None:
    interval = (min(mean, -below), max(mean, above))
    assert reading(METRICS["psnr"], mean, interval) == "no clear difference"


@given(st.floats(-100, 100))
def test_numbers_read_back(value: float) -> None:
    for text in (number(value, 3), signed(value, 3)):
        assert float(text.replace(MINUS, "-")) == pytest.approx(value, abs=0.5001e-3)
        assert "-" not in text


def test_rounded_zero_has_no_sign() -> None:
    assert [number(-0.0004), signed(-0.0004), signed(0.0004)] == ["0.000", "0.000", "0.000"]


def test_uneven_intervals_show_both_ends() -> None:
    assert with_interval(0.5, (0.1, 0.6)).split() == ["0.500", "[0.100,", "0.600]"]


def test_utility_differences_and_missing_values() -> None:
    arms = {
        "none": {"test": {"f1_micro": 0.9, "f1_macro": 0.8, "f1_class_0": 0.7, "accuracy": 0.9, "auroc": 0.95}},
        "shadow": {"test": {"f1_micro": 0.88, "f1_macro": 0.81, "f1_class_0": 0.7, "accuracy": 0.88, "auroc": None}},
    }
    table = utility_table(arms, ["benign", "malignant"])
    assert table.columns == ("F1, micro", "F1, macro", "AUROC", "Accuracy")
    assert [cell.value for cell in table.rows[1].cells] == ["0.880", "0.810", MISSING, "0.880"]
    assert [cell.difference for cell in table.rows[1].cells] == [f"{MINUS}0.020", "+0.010", "", f"{MINUS}0.020"]
    assert [cell.difference for cell in table.rows[0].cells] == [""] * 4
    assert [row.name for row in table.classes] == ["benign", "malignant"]
    assert table.classes[0].cells[1].difference == "0.000"
    assert table.classes[1].cells[0].value == MISSING


def test_csv_holds_every_number_in_full(content: Content) -> None:
    rows = list(csv.DictReader(io.StringIO(results_csv(content.results))))
    assert tuple(rows[0]) == COLUMNS
    index = {(r["attack"], r["round"], r["arm"], r["metric"]): r for r in rows}
    expected = 0
    for table in content.results["tables"]:
        for row in table["rows"]:
            for metric, measured in row["metrics"].items():
                expected += 1
                round = "all" if table["round"] is None else str(table["round"])
                found = index[table["attack"], round, row["arm"], metric]
                assert [float(found[k]) for k in ("mean", "low", "high")] == [measured["mean"], *measured["interval"]]
                assert int(found["images"]) == row["images"]
                if row["difference"] is None:
                    assert found["difference_mean"] == ""
                else:
                    difference = row["difference"][metric]
                    ends = [float(found[f"difference_{k}"]) for k in ("mean", "low", "high")]
                    assert ends == [difference["mean"], *difference["interval"]]
    assert len(rows) == expected


def test_csv_quotes_names_with_commas() -> None:
    row = {"arm": 'a, "b"', "images": 1, "metrics": {"psnr_whole": _measured(1.0)}, "difference": None}
    text = results_csv({"tables": [{"attack": "x", "round": 1, "rows": [row]}]})
    assert next(csv.DictReader(io.StringIO(text)))["arm"] == 'a, "b"'
