"""The page of the risks: for each its claim, what was found, a figure, a table, and how to see it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.charts import (
    BASELINE_STYLE,
    Curve,
    Dot,
    Panel,
    Style,
    curve_chart,
    dot_chart,
    legend_key,
    styles,
)
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.risks import CurveChart, DotChart, Finding, RiskEntry, RisksRecord
from shadow_defense.report.sentences.risks import OUTCOMES, number_text, outcome_sentence


@dataclass(frozen=True)
class Section:
    """One risk as it is laid out."""

    risk: RiskEntry
    number: str
    outcome: str
    charts: tuple[Panel, ...]


def render_risks(record: RisksRecord) -> str:
    """The whole page as one HTML document."""
    sections = [
        Section(
            risk, number_text(risk.finding), outcome_sentence(risk.finding), _charts(f"risk{risk.number}", risk.finding)
        )
        for risk in record.risks
    ]
    return render_page("risks", record, seeds=record.seeds, sections=sections, outcomes=OUTCOMES)


def _charts(name: str, finding: Finding) -> tuple[Panel, ...]:
    # One style a label, in all charts of the risk.
    labels = dict.fromkeys(
        label for chart in finding.charts for label in (chart.dots if isinstance(chart, DotChart) else chart.curves)
    )
    looks = dict(zip(labels, styles(len(labels)), strict=True))
    return tuple(_panel(f"{name}-{index}", chart, looks) for index, chart in enumerate(finding.charts))


def _panel(name: str, chart: DotChart | CurveChart, looks: Mapping[str, Style]) -> Panel:
    if isinstance(chart, CurveChart):
        curves = [
            Curve(label, tuple(round for round, _ in points), tuple(value for _, value in points), looks[label])
            for label, points in chart.curves.items()
        ]
        keys = tuple((each.label, legend_key(f"{name}-key{index}", each.style)) for index, each in enumerate(curves))
        return Panel(chart.title, curve_chart(name, chart.title, curves), keys)
    dots = [Dot(label, value, looks[label]) for label, value in chart.dots.items()]
    line = None
    if chart.baseline is not None:
        line = Dot(chart.baseline[0], Estimate(chart.baseline[1], None, 1), BASELINE_STYLE)
    return Panel(chart.title, dot_chart(name, chart.title, dots, line))
