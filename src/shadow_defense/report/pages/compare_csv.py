"""The tables of a comparison as one flat CSV, for a spreadsheet or a script."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

COLUMNS = (
    "part",
    "model",
    "attack",
    "round",
    "defense",
    "family",
    "strength",
    "share_bn",
    "on_front",
    "images",
    "seeds",
    "kind",
    "measure",
    "mean",
    "low",
    "high",
    "difference_mean",
    "difference_low",
    "difference_high",
)

Numbers = tuple[float | None, float | None, float | None]


def comparison_csv(comparison: Mapping[str, Any]) -> str:
    """One line per model, attack, round, defense and measure, in full precision, after a header of :data:`COLUMNS`.

    ``part`` is ``comparison`` or ``ablation``; ``kind`` is ``privacy``, ``utility``, ``cost``, ``guarantee`` (epsilon
    and its delta) or ``measured`` (by the defense). ``low`` and ``high`` end the 95 % interval; ``difference_*`` is
    to the first defense, paired by image and seed. ``round`` is ``all`` for all attacked rounds together;
    ``on_front`` is 1 or 0, for the rows that stand on a plane. What does not exist is empty.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    fronts = {
        (plane["model"], plane["attack"], point["defense"]): int(point["on_front"])
        for plane in comparison["planes"]
        for point in plane["points"]
    }
    for part, tables in (("comparison", comparison["tables"]), ("ablation", comparison["ablations"])):
        for table in tables:
            round = "all" if table["round"] is None else table["round"]
            for row in table["rows"]:
                defense = comparison["defenses"].get(row["defense"], {})
                on_plane = part == "comparison" and table["round"] is None
                front = fronts.get((table["model"], table["attack"], row["defense"])) if on_plane else None
                place = (
                    part,
                    table["model"],
                    table["attack"],
                    round,
                    row["defense"],
                    *(defense.get(key) for key in ("family", "label", "share_bn")),
                    front,
                    row["images"],
                    row["seeds"],
                )
                for kind, measure, value, difference in _measures(row):
                    writer.writerow((*place, kind, measure, *value, *difference))
    return buffer.getvalue()


def _measures(row: Mapping[str, Any]) -> Iterator[tuple[str, str, Numbers, Numbers]]:
    for kind, values, differences in (
        ("privacy", row["metrics"], row["difference"]),
        ("utility", row["utility"], row["utility_difference"]),
    ):
        for name, value in (values or {}).items():
            yield kind, name, _numbers(value), _numbers((differences or {}).get(name))
    for kind, values in (("cost", row["cost"]), ("measured", row["measured"])):
        for name, mean in (values or {}).items():
            yield kind, name, (mean, None, None), _numbers(None)
    if row["epsilon"] is not None:
        yield "guarantee", "epsilon", _numbers(row["epsilon"]), _numbers(None)
        yield "guarantee", "delta", (row["epsilon"]["delta"], None, None), _numbers(None)


def _numbers(measure: Mapping[str, Any] | None) -> Numbers:
    if measure is None:
        return None, None, None
    low, high = measure["interval"] or (None, None)
    return measure["mean"], low, high
