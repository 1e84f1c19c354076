"""The CSV holds every number of the tables, in full precision, and nothing else."""

from __future__ import annotations

import csv
import io
from typing import Any

from shadow_defense.report.pages.compare_csv import COLUMNS, comparison_csv


def _read(comparison: dict[str, Any]) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(comparison_csv(comparison)))
    rows = list(reader)
    assert reader.fieldnames is not None
    assert tuple(reader.fieldnames) == COLUMNS
    return rows


def _rebuilt(lines: list[dict[str, str]]) -> dict[tuple[str, ...], tuple[float | None, ...]]:
    numbers = ("mean", "low", "high", "difference_mean", "difference_low", "difference_high")
    places = ("part", "model", "attack", "round", "defense", "kind", "measure")
    return {
        tuple(line[place] for place in places): tuple(float(line[key]) if line[key] else None for key in numbers)
        for line in lines
    }


def _expected(comparison: dict[str, Any]) -> dict[tuple[str, ...], tuple[float | None, ...]]:
    def three(measure: dict[str, Any] | None) -> tuple[float | None, ...]:
        return (None,) * 3 if measure is None else (measure["mean"], *(measure["interval"] or (None, None)))

    cells = {}
    for part, tables in (("comparison", comparison["tables"]), ("ablation", comparison["ablations"])):
        for table in tables:
            round = "all" if table["round"] is None else str(table["round"])
            for row in table["rows"]:
                place = (part, table["model"], table["attack"], round, row["defense"])
                for name, value in row["metrics"].items():
                    cells[*place, "privacy", name] = (*three(value), *three((row["difference"] or {}).get(name)))
                for name, value in (row["utility"] or {}).items():
                    difference = (row["utility_difference"] or {}).get(name)
                    cells[*place, "utility", name] = (*three(value), *three(difference))
                for kind, values in (("cost", row["cost"] or {}), ("measured", row["measured"])):
                    for name, value in values.items():
                        cells[*place, kind, name] = (value, None, None, None, None, None)
                if row["epsilon"]:
                    cells[*place, "guarantee", "epsilon"] = (*three(row["epsilon"]), None, None, None)
                    cells[*place, "guarantee", "delta"] = (row["epsilon"]["delta"], None, None, None, None, None)
    return cells


def test_every_number_comes_back(comparison: dict[str, Any]) -> None:
    lines = _read(comparison)
    rebuilt = _rebuilt(lines)
    assert len(rebuilt) == len(lines)
    assert rebuilt == _expected(comparison)


def test_places_come_back(comparison: dict[str, Any]) -> None:
    lines = _read(comparison)
    shadow = [line for line in lines if line["defense"] == "shadow 0.19"]
    assert {line["family"] for line in shadow} == {"shadow"}
    assert {line["strength"] for line in shadow} == {"0.19"}
    assert {(line["images"], line["seeds"]) for line in shadow} == {("24", "3")}
    front = {
        (plane["model"], plane["attack"], point["defense"])
        for plane in comparison["planes"]
        for point in plane["points"]
        if point["on_front"]
    }
    starred = {(line["model"], line["attack"], line["defense"]) for line in lines if line["on_front"] == "1"}
    assert starred == front
    assert {line["on_front"] for line in lines if line["round"] != "all" or line["part"] == "ablation"} == {""}


def test_names_with_commas_quotes_and_lines_come_back(comparison: dict[str, Any]) -> None:
    hostile = 'a "b", c;\nd'
    row = {**comparison["tables"][0]["rows"][0], "defense": hostile}
    table = {**comparison["tables"][0], "attack": hostile, "rows": [row]}
    lines = _read({**comparison, "tables": [table], "ablations": [], "planes": []})
    assert {line["defense"] for line in lines} == {hostile}
    assert {line["attack"] for line in lines} == {hostile}
