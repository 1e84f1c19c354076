"""The page of a calibration: leakage against strength, the chosen setting to paste, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow_defense.files import write_text
from shadow_defense.report.kit.charts import legend_key, styles
from shadow_defense.report.kit.formatting import (
    METRICS,
    RELATIVE_LEAKAGE,
    Metric,
    number,
    signed_with_interval,
    with_interval,
)
from shadow_defense.report.kit.strength_chart import Level, Point, Series, strength_chart
from shadow_defense.report.kit.template import nested_text, render_template

Results = Mapping[str, Any]

LEAKAGE: dict[str, Metric] = {
    "ssim": METRICS["ssim"],
    "psnr": METRICS["psnr"],
    "rdlv": RELATIVE_LEAKAGE,
}


@dataclass(frozen=True)
class Row:
    """One measured setting as the table shows it."""

    schedule: str
    strength: str
    amplitude: str
    leakage: tuple[str, ...]
    f1: str
    difference: str
    chosen: bool


def render_calibration(results: Results) -> str:
    """The whole page as one HTML document; ``results`` is what ``calibration.json`` holds. All text is escaped."""
    return render_template("pages/calibrate.html.j2", _context(results))


def write_calibration(path: Path, results: Results) -> None:
    """Write :func:`render_calibration` to ``path``, whole or not at all."""
    write_text(path, render_calibration(results))


def _context(results: Results) -> dict[str, Any]:
    schedules, chosen = results["schedules"], results["chosen"]
    metric, target = results["target"]["metric"], results["target"]["value"]
    # Without the first style: it stands for no defense elsewhere.
    styled = dict(zip(schedules, styles(len(schedules) + 1)[1:], strict=True))
    ring = {} if chosen is None else {chosen["schedule"]: chosen["strength"]}

    def series(measure: str | None) -> list[Series]:
        return [
            Series(
                name,
                tuple(_cost(entry) if measure is None else _leaked(entry, measure) for entry in found["measurements"]),
                styled[name],
                ring.get(name),
            )
            for name, found in schedules.items()
        ]

    levels = {
        name: [Level("mean image", blank["mean"], "dotted")]
        for name, blank in results["mean_image"].items()
        if all(name in entry["leakage"] for found in schedules.values() for entry in found["measurements"])
    }
    levels[metric].append(Level("target", target, "dashed", above=True))
    charts = [
        (_title(name), strength_chart(f"leakage-{name}", _title(name), series(name), levels[name]))
        for name in (metric, *(other for other in levels if other != metric))
    ]
    title = "Macro F1 on the test images"
    undefended = math.fsum(results["undefended"]["f1"]) / len(results["undefended"]["f1"])
    charts.append((title, strength_chart("f1", title, series(None), [Level("no defense", undefended, "dotted")])))
    return {
        "record": results,
        "seeds": results["seeds"],
        "target": f"{LEAKAGE[metric].label} {number(target, 2, LEAKAGE[metric].unit)}",
        "charts": charts,
        "legend": [(name, legend_key(f"key{index}", style)) for index, (name, style) in enumerate(styled.items())],
        "columns": [_title(name) for name in levels],
        "rows": _rows(results, list(levels)),
        "metrics": [LEAKAGE[name] for name in levels],
        "setting": None if chosen is None else nested_text({"arms": chosen["arm"]}),
        "config": nested_text(results["config"]),
    }


def _title(metric: str) -> str:
    shown = LEAKAGE[metric]
    return f"{shown.label}, {shown.unit}" if shown.unit else shown.label


def _leaked(measured: Results, metric: str) -> Point:
    leakage = measured["leakage"][metric]
    return Point(measured["strength"], leakage["mean"], (leakage["low"], leakage["high"]))


def _cost(measured: Results) -> Point:
    return Point(measured["strength"], math.fsum(measured["f1"]) / len(measured["f1"]), None)


def _rows(results: Results, metrics: list[str]) -> list[Row]:
    chosen = results["chosen"] or {"schedule": None, "strength": None}
    rows = [_row("no defense", results["undefended"], metrics, False)]
    for name, found in results["schedules"].items():
        for measured in found["measurements"]:
            if measured["strength"] > 0:
                same = (name, measured["strength"]) == (chosen["schedule"], chosen["strength"])
                rows.append(_row(name, measured, metrics, same))
    return rows


def _row(schedule: str, measured: Results, metrics: list[str], chosen: bool) -> Row:
    texts = []
    for metric in metrics:
        leakage, digits = measured["leakage"][metric], min(LEAKAGE[metric].digits, 2)
        interval = (leakage["low"], leakage["high"])
        texts.append(f"{with_interval(leakage['mean'], interval, digits)} (round {leakage['round']})")
    difference = measured["f1_difference"]
    return Row(
        schedule=schedule,
        strength=f"{measured['strength']:g}",
        amplitude=number(measured["mean_amplitude"], 2),
        leakage=tuple(texts),
        f1=number(_cost(measured).mean, 3),
        difference=signed_with_interval(difference["mean"], difference["interval"], 3),
        chosen=chosen,
    )
