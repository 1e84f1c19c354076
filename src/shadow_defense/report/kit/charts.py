"""Charts as inline SVG that take the page's text colour and share no id with one another."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle, starmap
from typing import TYPE_CHECKING

from shadow_defense.metrics.confidence import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Grey for the first (no defense), then the colours of Okabe and Ito that stand out on white and on black.
FIRST_COLOUR = "#808080"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

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
    """One line of a chart: estimates at places along it, such as rounds from 1; ``ring`` is a place to mark."""

    label: str
    places: Sequence[float]
    values: Sequence[Estimate]
    style: Style
    ring: float | None = None


@dataclass(frozen=True)
class Level:
    """A line across a chart with its name; ``above``: on which side of a horizontal one it stands."""

    label: str
    value: float
    dash: str = "dashed"
    above: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart with its heading, and a legend (name, key) where the chart itself does not name what it draws."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]] = ()


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, the first grey; no two of 43 share both colour and marker.

    >>> styles(["none", "shadow"])["shadow"]
    Style(colour='#0072B2', dash='dashed', marker='s')
    """
    later = zip(cycle(COLOURS), cycle(DASHES[1:] + DASHES[:1]), cycle(MARKERS[1:] + MARKERS[:1]), strict=False)
    kinds = chain([Style(FIRST_COLOUR, DASHES[0], MARKERS[0])], starmap(Style, later))
    return dict(zip(names, kinds, strict=False))


def line_chart(
    name: str,
    title: str,
    curves: Sequence[Curve],
    levels: Sequence[Level] = (),
    *,
    along: str = "round",
) -> str:
    """Curves with their intervals as an SVG element; ``name`` is unique in the page and prefixes every id.

    Args:
        along: what the places of the curves are.
    """
    from matplotlib.ticker import MaxNLocator

    with drawing(name):
        figure, axes = panel(height=270)
        places = sorted({place for curve in curves for place in curve.places})
        for curve in curves:
            _draw_curve(axes, curve)
        for level in levels:
            axes.axhline(level.value, color=TEXT_COLOUR, linestyle=level.dash, linewidth=1.2, alpha=0.8)
            # Beside the plot, where no point lies; above and below their lines, so that two near ones stay apart.
            axes.annotate(
                shorten(level.label), (1, level.value), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", fontsize=12, ha="left", va="bottom" if level.above else "top",
            )  # fmt: skip
        axes.set_xlabel(along)
        if all(float(place).is_integer() for place in places):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(places) == 1:
            axes.set_xticks(places)
        axes.margins(x=0.04, y=0.1)
        lines = [
            f"{curve.label} from {curve.values[0].mean:.3g} at {curve.places[0]:g} to {curve.values[-1].mean:.3g} at "
            f"{curve.places[-1]:g}"
            for curve in curves
        ] + [f"{level.label} {level.value:.3g}" for level in levels]
        return svg_element(figure, name, f"{title} by {along}: {'; '.join(lines)}")


def _draw_curve(axes: Axes, curve: Curve) -> None:
    style = curve.style
    axes.plot(
        curve.places,
        [value.mean for value in curve.values],
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        markersize=5,
        markevery=max(1, len(curve.places) // 12),
        linewidth=1.5,
    )
    for place, value in zip(curve.places, curve.values, strict=True):
        if value.interval is not None:
            axes.plot((place, place), value.interval, color=style.colour, linewidth=2.4, alpha=0.55)
        if place == curve.ring:
            axes.plot(
                (place,), (value.mean,), linestyle="none", marker="o", markersize=15, markerfacecolor="none",
                markeredgecolor=TEXT_COLOUR,
            )  # fmt: skip


def dot_chart(
    name: str, title: str, dots: Mapping[str, Estimate], looks: Mapping[str, Style], level: Level | None
) -> str:
    """Means with their intervals, one row a name, and a level as a line down the chart, as an SVG element."""
    with drawing(name):
        figure, axes = panel(height=44 + 40 * len(dots) + (18 if level else 0))
        for row, (label, value) in enumerate(dots.items()):
            style = looks[label]
            if value.interval is not None:
                axes.plot(value.interval, (row, row), color=style.colour, linewidth=2.4, solid_capstyle="round")
            axes.plot((value.mean,), (row,), color=style.colour, marker=style.marker, markersize=6)
            # Above its row and from the left edge: a long name costs no width of the plot.
            axes.annotate(
                shorten(label), (0, row), xycoords=("axes fraction", "data"), xytext=(2, 7),
                textcoords="offset points", fontsize=12,
            )  # fmt: skip
        if level is not None:
            axes.axvline(level.value, color=TEXT_COLOUR, linestyle=level.dash, linewidth=1, alpha=0.7)
            axes.annotate(
                level.label, (level.value, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
                textcoords="offset points", fontsize=12, ha="center",
            )  # fmt: skip
        axes.set_ylim(len(dots) - 0.6, -0.85)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.1)
        said = [f"{label} {value.mean:.3g}" for label, value in dots.items()]
        said += [f"{level.label} {level.value:.3g}"] if level else []
        return svg_element(figure, name, f"{title}: {', '.join(said)}")


def legend(name: str, looks: Mapping[str, Style]) -> list[tuple[str, str]]:
    """Names with the line and marker of each as a small SVG element, for a legend written in the page."""
    return [(label, _key(f"{name}-key{index}", style)) for index, (label, style) in enumerate(looks.items())]


def _key(name: str, style: Style) -> str:
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

    settings: dict[str, object] = {
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
