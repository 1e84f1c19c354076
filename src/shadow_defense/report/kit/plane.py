"""The privacy-utility plane: every defense by what it leaves to the attacker and by what its model is worth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from shadow_defense.files import write_text
from shadow_defense.report.kit.charts import TEXT_COLOUR, Style, drawing, panel, shorten, styles, svg_element
from shadow_defense.report.kit.formatting import with_interval
from shadow_defense.report.kit.labels import place_labels
from shadow_defense.report.kit.metrics import Metric, metric_of
from shadow_defense.report.records.comparison import DefenseEntry, Plane, PlanePoint
from shadow_defense.report.records.scores import MEAN_IMAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (800, 540)
# Text on white paper, as in page.css.
_INK = "#1d2429"

CONTROL_COLOUR = "#808080"
"""Of what only shows what others are worth: no defense, and noise at no particular place."""

# How far an interval may widen the picture beyond the means, as a share of what the means span.
_BEYOND_MEANS = 0.12


@dataclass(frozen=True)
class Marker:
    """One arm on the plane, with the sweep that it belongs to."""

    point: PlanePoint
    family: str
    label: str

    @property
    def short(self) -> str:
        """The family, with the strength where it says more than the family."""
        return self.family if self.label in (self.family, "") else f"{self.family} {self.label}"

    @property
    def place(self) -> tuple[float, float]:
        """Across and along: utility and privacy."""
        return self.point.utility.mean, self.point.privacy.mean


def plane_markers(plane: Plane, defenses: Mapping[str, DefenseEntry]) -> list[Marker]:
    """The points of a plane in the order of ``defenses``: that of strength."""
    order = {name: index for index, name in enumerate(defenses)}
    return [
        Marker(point, defenses[point.arm].family, defenses[point.arm].label)
        for point in sorted(plane.points, key=lambda point: order[point.arm])
    ]


def plane_svg(name: str, plane: Plane, defenses: Mapping[str, DefenseEntry]) -> str:
    """One plane with its legend beside, as an SVG element in the colours of the page.

    Right: better utility. Up: better privacy, whichever way the metric runs. Filled markers: the Pareto front,
    with labels, and with what it dominates shaded. Controls are grey. Every marker carries its name and numbers as a
    title, and its intervals, which page.css shows under the pointer or the focus.

    Args:
        name: unique in the page; prefixes every id.
    """
    metric = metric_of(plane.metric)
    markers = plane_markers(plane, defenses)
    looks = styles(dict.fromkeys(defense.family for defense in defenses.values()))
    controls = {each.family for each in defenses.values() if each.placement not in (None, "targeted")}
    looks |= {family: replace(looks[family], colour=CONTROL_COLOUR) for family in controls}
    up_is_low = bool(metric.higher_is_closer)
    with drawing(name):
        figure, axes = panel(width=_SIZE[0], height=_SIZE[1])
        _set_limits(axes, markers, plane.baseline, up_is_low)
        axes.set_xlabel("macro F1 on the test images (right: more useful)")
        axes.set_ylabel(f"{metric.title} of the reconstruction (up: better protected)")
        _draw_front(axes, markers)
        _draw_markers(axes, markers, looks)
        baselines = _draw_baselines(axes, plane.baseline)
        _draw_legend(figure, looks, {marker.family for marker in markers})
        figure.draw_without_rendering()
        # Labels are placed on this layout: they must not move it.
        figure.set_layout_engine("none")
        place_labels(
            axes,
            [marker.place for marker in markers],
            [(shorten(each.short), index) for index, each in enumerate(markers) if each.point.on_front or not index],
            [(shorten(each.label), index) for index, each in enumerate(markers) if _is_small(markers, index)],
            baselines,
        )
        svg = svg_element(figure, name, _description(plane, metric))
    return _with_titles(svg, name, markers, metric)


def write_plane(path: Path, plane: Plane, defenses: Mapping[str, DefenseEntry]) -> None:
    """Write a plane as an SVG file on white, for documents."""
    svg = plane_svg("plane", plane, defenses)
    head, _, body = svg.partition(">")
    head = head.replace("<svg ", f'<svg style="color: {_INK}" ', 1)
    outlined = "text { paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round }"
    style = f"<style>.interval {{ opacity: 0.3 }} {outlined}</style>"
    write_text(path, f'{head}>{style}<rect width="100%" height="100%" fill="#fff"/>{body}')


def _set_limits(axes: Axes, markers: Sequence[Marker], baseline: Mapping[str, float], up_is_low: bool) -> None:
    points = [marker.point for marker in markers]
    across = _limits([point.utility.mean for point in points], [point.utility.interval for point in points])
    heights = [point.privacy.mean for point in points] + list(baseline.values())
    along = _limits(heights, [point.privacy.interval for point in points])
    axes.set_xlim(*across)
    axes.set_ylim(*(reversed(along) if up_is_low else along))


def _limits(means: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> tuple[float, float]:
    """What shows all means with a margin, and intervals as far as they do not shrink the means to a spot."""
    low, high = min(means, default=0.0), max(means, default=1.0)
    span = (high - low) or 0.1
    ends = [end for interval in intervals if interval is not None for end in interval]
    least, most = min([low, *ends]), max([high, *ends])
    margin, beyond = 0.06 * span, _BEYOND_MEANS * span
    return max(least, low - beyond) - margin, min(most, high + beyond) + margin


def front_corners(markers: Sequence[Marker]) -> list[tuple[float, float]]:
    """(utility, privacy) of the front from least to most useful."""
    return sorted(marker.place for marker in markers if marker.point.on_front)


def _draw_front(axes: Axes, markers: Sequence[Marker]) -> None:
    corners = front_corners(markers)
    if not corners:
        return
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    # From a corner to the next: straight down at its utility, then right at the next one's privacy.
    line = [(left, corners[0][1])]
    for (utility, privacy), (_, next_privacy) in zip(corners, [*corners[1:], (0.0, bottom)], strict=True):
        line += [(utility, privacy), (utility, next_privacy)]
    x, y = zip(*line, strict=True)
    axes.fill([*x, left], [*y, bottom], color=TEXT_COLOUR, alpha=0.06, linewidth=0, zorder=0)
    axes.plot(x, y, color=TEXT_COLOUR, alpha=0.45, linewidth=1.2, zorder=1)


def _draw_markers(axes: Axes, markers: Sequence[Marker], looks: Mapping[str, Style]) -> None:
    for family, style in looks.items():
        own = [marker.place for marker in markers if marker.family == family]
        if len(own) > 1:
            axes.plot(
                *zip(*own, strict=True), color=style.colour, linestyle=style.dash, linewidth=1.2, alpha=0.4, zorder=2
            )
    for index, marker in enumerate(markers):
        style, (x, y), on_front = looks[marker.family], marker.place, marker.point.on_front
        across, along = marker.point.utility.interval or (x, x), marker.point.privacy.interval or (y, y)
        for part, (xs, ys) in (("across", (across, (y, y))), ("along", ((x, x), along))):
            axes.plot(xs, ys, color=style.colour, linewidth=1.4, zorder=2, gid=f"{part}{index}")
        axes.plot(
            (x,),
            (y,),
            color=style.colour,
            marker=style.marker,
            markersize=8 if on_front else 6,
            markerfacecolor=style.colour if on_front else "none",
            markeredgewidth=1.3,
            linestyle="none",
            zorder=4 if on_front else 3,
            gid=f"point{index}",
        )


def _draw_baselines(axes: Axes, baseline: Mapping[str, float]) -> list[tuple[str, float]]:
    for name, value in baseline.items():
        dash = "dashed" if name == MEAN_IMAGE else "dotted"
        axes.axhline(value, color=TEXT_COLOUR, linestyle=dash, linewidth=1.1, alpha=0.7, zorder=1)
    return [(shorten(name), value) for name, value in baseline.items()]


def _draw_legend(figure: Any, looks: Mapping[str, Style], drawn: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=style.colour, linestyle=style.dash, marker=style.marker, linewidth=1.2, label=shorten(family)
        )
        for family, style in looks.items()
        if family in drawn
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=11)


def _is_small(markers: Sequence[Marker], index: int) -> bool:
    """Whether a point's strength is written in small print: one of a sweep, without a label of its own."""
    swept = sum(other.family == markers[index].family for other in markers) > 1
    return swept and not markers[index].point.on_front and index > 0


def _description(plane: Plane, metric: Metric) -> str:
    front = ", ".join(
        f"{point.arm} ({point.privacy.mean:.3g}, {point.utility.mean:.3g})" for point in plane.points if point.on_front
    )
    return (
        f"Privacy-utility plane of {plane.model} under {plane.attack}: {metric.label} ({metric.better_when}) and "
        f"macro F1 of {len(plane.points)} defenses; on the Pareto front: {front or 'none'}"
    )


def _with_titles(svg: str, name: str, markers: Sequence[Marker], metric: Metric) -> str:
    """Each marker's group with a ``<title>``, which browsers show under the pointer, and with its intervals."""
    bars: dict[str, list[str]] = {}

    def taken(match: re.Match[str]) -> str:
        bars.setdefault(match[2], []).append(match[0].replace("<g ", '<g class="interval" ', 1))
        return ""

    svg = re.sub(rf' *<g id="{re.escape(name)}-(across|along)(\d+)">.*?</g>\n', taken, svg, flags=re.DOTALL)

    def titled(match: re.Match[str]) -> str:
        point = markers[int(match[1])].point
        privacy = with_interval(point.privacy, metric.digits)
        utility = with_interval(point.utility)
        front = ", on the front" if point.on_front else ""
        told = escape(f"{point.arm}: {metric.label} {privacy}, F1 {utility}{front}")
        group = match[0].replace("<g ", '<g class="point" ', 1)
        return f"{group}<title>{told}</title>{''.join(bars.get(match[1], ()))}"

    return re.sub(rf'<g id="{re.escape(name)}-point(\d+)">', titled, svg)
