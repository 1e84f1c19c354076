"""Which charts the page of a run shows: curves over the rounds, and each attack's scores by arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.charts import Curve, Level, Panel, Style, dot_chart, line_chart
from shadow_defense.report.kit.metrics import FIDELITY
from shadow_defense.report.records.run import Arm, Round
from shadow_defense.report.records.scores import MEAN_IMAGE, ScoreTable


def mean_noise(entry: Round) -> float | None:
    """The noise's root mean square in one round, averaged over the clients that measured it; None where none did.

    >>> mean_noise(Round(0, 1.0, {"a": {"noise_rms": 0.1}, "b": {"noise_rms": 0.3}, "c": {"loss": 1.0}}))
    0.2
    """
    measured = [rms for client in entry.clients.values() if (rms := client.get("noise_rms")) is not None]
    return math.fsum(measured) / len(measured) if measured else None


CURVES: dict[str, Callable[[Round], float | None]] = {
    "Training loss": lambda entry: entry.loss,
    "Macro F1 on the test images": lambda entry: entry.test.get("f1_macro"),
    "Noise, root mean square (1 = standard deviation of the images)": mean_noise,
}


def curve_panels(arms: Mapping[str, Arm], looks: Mapping[str, Style]) -> list[Panel]:
    """A chart of each of :data:`CURVES` that at least one arm has values for."""
    panels = []
    for index, (title, measure) in enumerate(CURVES.items()):
        curves = []
        for name, arm in arms.items():
            points = {entry.round + 1: measure(entry) for entry in arm.history}
            values = {
                round: Estimate(value, None, 1)
                for round, value in points.items()
                if value is not None and math.isfinite(value)
            }
            if values:
                curves.append(Curve(name, tuple(values), tuple(values.values()), looks[name]))
        if curves:
            panels.append(Panel(title, line_chart(f"curve{index}", title, curves)))
    return panels


def score_panels(name: str, table: ScoreTable, looks: Mapping[str, Style]) -> list[Panel]:
    """A dot plot of each metric over the whole image, one row an arm, the mean image as a line."""
    panels = []
    for key, metric in FIDELITY.items():
        dots = {row.arm: row.metrics[f"{key}_whole"] for row in table.rows if f"{key}_whole" in row.metrics}
        mean_image = dots.pop(MEAN_IMAGE, None)
        if dots:
            title = f"{metric.title}: {metric.better_when}"
            level = None if mean_image is None else Level(MEAN_IMAGE, mean_image.mean)
            panels.append(Panel(title, dot_chart(f"{name}-{key}", title, dots, looks, level)))
    return panels
