"""Leakage and its cost against the strength of the noise, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shadow_defense.report.kit.charts import TEXT_COLOUR, Style, drawing, panel, shorten, svg_element


@dataclass(frozen=True)
class Point:
    """One measured strength; ``interval`` is None where there is none."""

    strength: float
    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Series:
    """All measured strengths of one schedule, weakest first; ``chosen`` is the one to mark."""

    label: str
    points: tuple[Point, ...]
    style: Style
    chosen: float | None = None


@dataclass(frozen=True)
class Level:
    """A horizontal line with its name, which stands above or below it."""

    label: str
    value: float
    dash: str
    above: bool = False


def strength_chart(name: str, title: str, series: Sequence[Series], levels: Sequence[Level]) -> str:
    """Means with their intervals over the strength, as an SVG element; the chosen strength has a ring around it."""
    with drawing(name):
        figure, axes = panel(height=300, width=560)
        for line in series:
            strengths = [point.strength for point in line.points]
            colour = line.style.colour
            axes.plot(
                strengths,
                [point.mean for point in line.points],
                color=colour,
                linestyle=line.style.dash,
                marker=line.style.marker,
                markersize=5,
                linewidth=1.4,
            )
            for point in line.points:
                if point.interval is not None:
                    axes.plot((point.strength,) * 2, point.interval, color=colour, linewidth=2.4, alpha=0.55)
                if point.strength == line.chosen:
                    axes.plot(
                        (point.strength,), (point.mean,), linestyle="none", marker="o", markersize=15,
                        markerfacecolor="none", markeredgecolor=TEXT_COLOUR,
                    )  # fmt: skip
        for level in levels:
            axes.axhline(level.value, color=TEXT_COLOUR, linestyle=level.dash, linewidth=1.2, alpha=0.8)
            # Beside the plot, where no point lies; above and below their lines, so that two near ones stay apart.
            axes.annotate(
                shorten(level.label), (1, level.value), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", fontsize=12, ha="left", va="bottom" if level.above else "top",
            )  # fmt: skip
        axes.set_xlabel("strength")
        axes.margins(x=0.04, y=0.1)
        text = "; ".join(
            f"{line.label}: " + ", ".join(f"{point.mean:.3g} at {point.strength:g}" for point in line.points)
            for line in series
        )
        lines = "".join(f"; {level.label} {level.value:.3g}" for level in levels)
        return svg_element(figure, name, f"{title} by strength: {text}{lines}")
