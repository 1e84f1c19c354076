"""The page of the seven risks: for each its claim, what was found, a figure, a table, and how to see it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow_defense.files import write_text
from shadow_defense.report.kit.charts import (
    BASELINE_STYLE,
    Curve,
    Dot,
    Style,
    curve_chart,
    dot_chart,
    legend_key,
    styles,
)
from shadow_defense.report.kit.formatting import number
from shadow_defense.report.kit.template import nested_text, render_template
from shadow_defense.report.pages.run_charts import Panel

OUTCOMES = {
    "borne out": "The 95 % interval lies on the claim's side.",
    "not clear": "The 95 % interval includes what would be found if the claim were wrong, or there is no interval.",
    "contradicted": "The 95 % interval lies on the other side.",
}


@dataclass(frozen=True)
class Figure:
    """A chart with its heading, and a legend where the chart itself does not name what it draws."""

    panel: Panel
    legend: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """One risk as it is laid out."""

    risk: Mapping[str, Any]
    number: str
    figures: tuple[Figure, ...]


def render_risks_page(results: Mapping[str, Any]) -> str:
    """One HTML document from the content of ``risks.json``, with its charts and style inside.

    ``results`` holds ``title``, ``created``, ``command``, ``seeds``, ``versions``, ``config`` and ``risks``: for each
    ``number``, ``name``, ``claim``, ``experiment``, ``folders`` (of its sub-runs) and ``finding`` (``sentence``,
    ``quantity``, ``value`` {``mean``, ``interval``, ``count``}, ``values_are``, ``unit``, ``digits``, ``nothing``,
    ``outcome``, ``charts``, ``columns``, ``rows``, ``notes``). All text is escaped; nothing is loaded.
    """
    sections = [_section(risk) for risk in results["risks"]]
    config = nested_text(results["config"])
    return render_template(
        "pages/risks.html.j2",
        {
            "record": results,
            "seeds": results["seeds"],
            "sections": sections,
            "outcomes": OUTCOMES,
            "config": config,
        },
    )


def write_risks_page(path: Path, results: Mapping[str, Any]) -> None:
    """Write :func:`render_risks_page` to ``path``, whole or not at all."""
    write_text(path, render_risks_page(results))


def _section(risk: Mapping[str, Any]) -> Section:
    finding = risk["finding"]
    # One style a label, in all charts of the risk.
    labels = dict.fromkeys(label for chart in finding["charts"] for label in chart[chart["kind"]])
    looks = dict(zip(labels, styles(len(labels)), strict=True))
    charts = [_figure(f"risk{risk['number']}-{index}", chart, looks) for index, chart in enumerate(finding["charts"])]
    return Section(risk, number_text(finding), tuple(charts))


def number_text(finding: Mapping[str, Any]) -> str:
    """The finding's number with its interval and unit, and what is behind it.

    >>> finding = {"value": {"mean": 2.0, "interval": [1.5, 2.5], "count": 8}, "digits": 1, "unit": "dB"}
    >>> number_text({**finding, "values_are": "images"}).replace(chr(160), " ")
    '2.0 dB, 95 % interval 1.5 to 2.5 (8 images)'
    """
    value, digits, unit = finding["value"], finding["digits"], finding["unit"]
    mean = number(value["mean"], digits, unit)
    counted = f"({value['count']} {finding['values_are']})"
    if value["interval"] is None:
        return f"{mean}, no interval {counted}"
    low, high = (number(end, digits) for end in value["interval"])
    return f"{mean}, 95 % interval {low} to {high} {counted}"


def _figure(name: str, chart: Mapping[str, Any], looks: Mapping[str, Style]) -> Figure:
    if chart["kind"] == "curves":
        return _curves(name, chart, looks)
    return _dots(name, chart, looks)


def _curves(name: str, chart: Mapping[str, Any], looks: Mapping[str, Style]) -> Figure:
    curves = [
        Curve(label, tuple(round for round, _ in points), tuple(value for _, value in points), looks[label])
        for label, points in chart["curves"].items()
    ]
    keys = tuple((curve.label, legend_key(f"{name}-key{index}", curve.style)) for index, curve in enumerate(curves))
    return Figure(Panel(chart["title"], curve_chart(name, chart["title"], curves)), keys)


def _dots(name: str, chart: Mapping[str, Any], looks: Mapping[str, Style]) -> Figure:
    dots = [_dot(label, measured, looks[label]) for label, measured in chart["dots"].items()]
    baseline = chart["baseline"]
    line = None if baseline is None else Dot(baseline[0], baseline[1], None, BASELINE_STYLE)
    return Figure(Panel(chart["title"], dot_chart(name, chart["title"], dots, line)), ())


def _dot(label: str, measured: Mapping[str, Any], style: Style) -> Dot:
    interval = measured["interval"]
    return Dot(label, measured["mean"], None if interval is None else (interval[0], interval[1]), style)
