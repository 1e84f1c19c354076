"""The tables of a report as one flat CSV, for a spreadsheet or a script."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

COLUMNS = (
    "attack",
    "round",
    "arm",
    "metric",
    "mean",
    "low",
    "high",
    "images",
    "difference_mean",
    "difference_low",
    "difference_high",
)


def results_csv(results: Mapping[str, Any]) -> str:
    """One line per attack, round, arm and metric, numbers in full precision, after a header of :data:`COLUMNS`.

    ``low`` and ``high`` end the 95 % interval; ``difference_*`` is to the first arm, paired by image. ``round`` is
    ``all`` for all attacked rounds together; what does not exist is empty.

    >>> psnr = {"psnr_whole": {"mean": 9.5, "interval": None}}
    >>> row = {"arm": "none", "images": 1, "metrics": psnr, "difference": None}
    >>> print(results_csv({"tables": [{"attack": "a", "round": None, "rows": [row]}]}).splitlines()[1])
    a,all,none,psnr_whole,9.5,,,1,,,
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in results["tables"]:
        place = (table["attack"], "all" if table["round"] is None else table["round"])
        for row in table["rows"]:
            differences = row["difference"] or {}
            for metric, measured in row["metrics"].items():
                writer.writerow(
                    (
                        *place,
                        row["arm"],
                        metric,
                        *_three_numbers(measured),
                        row["images"],
                        *_three_numbers(differences.get(metric)),
                    )
                )
    return buffer.getvalue()


def _three_numbers(measured: Mapping[str, Any] | None) -> tuple[float | None, float | None, float | None]:
    if measured is None:
        return None, None, None
    low, high = measured["interval"] or (None, None)
    return measured["mean"], low, high
