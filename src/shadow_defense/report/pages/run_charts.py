"""Which charts a report shows: curves over the rounds, and each attack's scores by arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shadow_defense.report.kit.charts import BASELINE_STYLE, Curve, Dot, Style, curve_chart, dot_chart
from shadow_defense.report.kit.formatting import METRICS, better_when
from shadow_defense.report.pages.run_tables import BASELINE

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """One chart with its heading."""

    title: str
    svg: str


def mean_noise(entry: Entry) -> float | None:
    """The noise's root mean square in one round, averaged over the clients that measured it; None where none did.

    >>> mean_noise({"clients": {"a": {"noise_rms": 0.1}, "b": {"noise_rms": 0.3}, "c": {"loss": 1.0}}})
    0.2
    """
    measured = [client["noise_rms"] for client in entry["clients"].values() if client.get("noise_rms") is not None]
    return math.fsum(measured) / len(measured) if measured else None


CURVES: dict[str, Callable[[Entry], float | None]] = {
    "Training loss": lambda entry: entry["loss"],
    "F1 macro on the test images": lambda entry: (entry.get("test") or {}).get("f1_macro"),
    "Noise, root mean square (1 = standard deviation of the images)": mean_noise,
}


def curve_panels(arms: Mapping[str, Any], arm_styles: Mapping[str, Style]) -> list[Panel]:
    """A chart of each of :data:`CURVES` that at least one arm has values for."""
    panels = []
    for index, (title, measure) in enumerate(CURVES.items()):
        curves = []
        for name, arm in arms.items():
            points = [(entry["round"] + 1, measure(entry)) for entry in arm["history"]]
            finite = [(round, value) for round, value in points if value is not None and math.isfinite(value)]
            if finite:
                rounds, values = zip(*finite, strict=True)
                curves.append(Curve(name, tuple(rounds), tuple(values), arm_styles[name]))
        if curves:
            panels.append(Panel(title, curve_chart(f"curve{index}", title, curves)))
    return panels


def score_panels(name: str, table: Mapping[str, Any], arm_styles: Mapping[str, Style]) -> list[Panel]:
    """A dot plot of each metric over the whole image, one row an arm, the mean image as a line."""
    panels = []
    for metric_name, metric in METRICS.items():
        dots = {
            row["arm"]: _dot(row["arm"], row["metrics"][f"{metric_name}_whole"], arm_styles)
            for row in table["rows"]
            if row["metrics"].get(f"{metric_name}_whole") is not None
        }
        baseline = dots.pop(BASELINE, None)
        if dots:
            title = f"{metric.label}, {metric.unit}" if metric.unit else metric.label
            title = f"{title}: {better_when(metric)}"
            panels.append(Panel(title, dot_chart(f"{name}-{metric_name}", title, list(dots.values()), baseline)))
    return panels


def _dot(arm: str, measured: Mapping[str, Any], arm_styles: Mapping[str, Style]) -> Dot:
    interval = measured["interval"]
    style = arm_styles.get(arm, BASELINE_STYLE)
    return Dot(arm, measured["mean"], None if interval is None else (interval[0], interval[1]), style)
