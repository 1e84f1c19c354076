"""Charts as inline SVG that take the page's text colour and share no id with one another."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from shadow_defense.metrics.confidence import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Grey for the first arm (no defense), then the colours of Okabe and Ito that stand out on white and on black.
FIRST_COLOUR = "#808080"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = ("o", "s", "^", "D", "v", "P")

# Stands for the page's text colour until the SVG is written; no chart uses it for anything else.
TEXT_COLOUR = "#010203"

_POINTS_PER_INCH = 72
_PANEL_WIDTH = 360
_LABEL_LENGTH = 40


@dataclass(frozen=True)
class Style:
    """How one arm is drawn in every chart: colour, dash and marker each tell it apart from its neighbours."""

    colour: str
    dash: str
    marker: str


@dataclass(frozen=True)
class Curve:
    """One line of a chart: values over rounds counted from 1."""

    label: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]
    style: Style


@dataclass(frozen=True)
class Dot:
    """One row of a dot plot: a mean with its interval, or without one."""

    label: str
    value: Estimate
    style: Style


@dataclass(frozen=True)
class Panel:
    """One chart with its heading, and a legend (name, key) where the chart itself does not name what it draws."""

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


BASELINE_STYLE = Style(TEXT_COLOUR, "dashed", "")


def styles(count: int) -> list[Style]:
    """One style for each of ``count`` arms, the first grey.

    >>> [style.colour for style in styles(2)]
    ['#808080', '#0072B2']
    """
    colours = [FIRST_COLOUR, *islice(cycle(COLOURS), max(count - 1, 0))]
    return [
        Style(colour, dash, marker)
        for colour, dash, marker, _ in zip(colours, cycle(DASHES), cycle(MARKERS), range(count), strict=False)
    ]


def curve_chart(name: str, title: str, curves: Sequence[Curve]) -> str:
    """Curves over rounds as an SVG element; ``name`` is unique in the page and prefixes every id."""
    from matplotlib.ticker import MaxNLocator

    with drawing(name):
        figure, axes = panel(height=250)
        for curve in curves:
            axes.plot(
                curve.rounds,
                curve.values,
                color=curve.style.colour,
                linestyle=curve.style.dash,
                marker=curve.style.marker,
                markersize=4,
                markevery=max(1, len(curve.rounds) // 12),
                linewidth=1.6,
            )
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if all(len(curve.rounds) == 1 for curve in curves):
            axes.set_xticks(sorted({curve.rounds[0] for curve in curves}))
        axes.margins(y=0.08)
        text = ", ".join(f"{curve.label} ends at {curve.values[-1]:.3g}" for curve in curves)
        return svg_element(figure, name, f"{title} over the rounds: {text}")


def dot_chart(name: str, title: str, dots: Sequence[Dot], baseline: Dot | None) -> str:
    """Means with their intervals, one row an arm, and the baseline as a dashed line, as an SVG element."""
    with drawing(name):
        figure, axes = panel(height=44 + 40 * len(dots) + (18 if baseline else 0))
        for row, dot in enumerate(dots):
            if dot.value.interval is not None:
                axes.plot(dot.value.interval, (row, row), color=dot.style.colour, linewidth=2.4, solid_capstyle="round")
            axes.plot((dot.value.mean,), (row,), color=dot.style.colour, marker=dot.style.marker, markersize=6)
            # Above its row and from the left edge: a long name costs no width of the plot.
            axes.annotate(
                shorten(dot.label), (0, row), xycoords=("axes fraction", "data"), xytext=(2, 7),
                textcoords="offset points", fontsize=12,
            )  # fmt: skip
        if baseline is not None:
            axes.axvline(
                baseline.value.mean, color=baseline.style.colour, linestyle=baseline.style.dash, linewidth=1, alpha=0.7
            )
            axes.annotate(
                baseline.label, (baseline.value.mean, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
                textcoords="offset points", fontsize=12, ha="center",
            )  # fmt: skip
        axes.set_ylim(len(dots) - 0.6, -0.85)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.1)
        text = ", ".join(f"{dot.label} {dot.value.mean:.3g}" for dot in (*dots, *((baseline,) if baseline else ())))
        return svg_element(figure, name, f"{title}: {text}")


def legend_key(name: str, style: Style) -> str:
    """The line and marker of a style as a small SVG element, for a legend written in the page."""
    with drawing(name):
        figure, axes = panel(height=12, width=34)
        axes.plot((0, 1, 2), (0, 0, 0), color=style.colour, linestyle=style.dash, linewidth=1.6)
        axes.plot((1,), (0,), color=style.colour, marker=style.marker, markersize=5)
        axes.set_axis_off()
        return svg_element(figure, name, "")


def shorten(text: str) -> str:
    """A name on one line of a chart, its middle left out where it is too long.

    >>> shorten("shadow"), len(shorten("x" * 100))
    ('shadow', 40)
    """
    text = " ".join(text.split())
    if len(text) <= _LABEL_LENGTH:
        return text
    half = (_LABEL_LENGTH - 1) // 2
    return f"{text[: _LABEL_LENGTH - 1 - half]}…{text[-half:]}"


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """The settings under which all charts are drawn; ``name`` is the one given to :func:`svg_element`."""
    import matplotlib

    settings: dict[str, Any] = {
        # Names of arms are the user's: a dollar sign in them is no formula.
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.facecolor": "none",
        "grid.alpha": 0.18,
    }
    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    with matplotlib.rc_context(settings | dict.fromkeys(coloured, TEXT_COLOUR)), warnings.catch_warnings():
        # Text is drawn by the reader's browser, which has glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panel(height: int, width: int = _PANEL_WIDTH) -> tuple[Figure, Axes]:
    """An empty transparent figure of that many points with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="constrained")
    figure.patch.set_alpha(0)
    return figure, figure.add_subplot()


def svg_element(figure: Figure, name: str, description: str) -> str:
    """The figure's ``<svg>`` element with prefixed ids, described for readers who do not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    # Inside a page a style element would reach beyond its own chart; page.css has the same rule for charts only.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid=")', rf"\1{name}-", body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{name}-", body)
    body = body.replace(TEXT_COLOUR, "currentColor")
    label = f'role="img" aria-label="{_attribute(description)}"' if description else 'aria-hidden="true"'
    return body.replace("<svg ", f'<svg class="chart" {label} ', 1)


def _attribute(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
