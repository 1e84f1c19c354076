"""Labels beside the points of a crowded chart, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shadow_defense.report.kit.charts import TEXT_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FONT = 11.0
_SMALL_FONT = 9.0

# Width of a letter and height of a line, as shares of the font's size: the reader's browser chooses the font.
_LETTER = 0.56
_LINE = 1.15

# Half the side of a marker with some air, in points.
_MARKER = 6.0

# A label farther than this from its marker gets a thin line to it.
_NEAR = 14.0

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def overlap(first: Box, second: Box) -> float:
    """The area that two boxes share.

    >>> overlap((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)), overlap((0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0))
    (1.0, 0.0)
    """
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    return max(wide, 0.0) * max(high, 0.0)


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[tuple[str, int]],
    small: Sequence[tuple[str, int]],
    lines: Sequence[tuple[str, float]],
) -> None:
    """Write texts beside points, and names above horizontal lines, where they cover least.

    Args:
        points: (x, y) of every marker, in data units; the axes' limits are final and the layout is done.
        labels: (text, index of its point), all of which are written, with a thin line to a marker that is far.
        small: the same in small print; one that has no free place is left out.
        lines: (name, height) of horizontal lines, written at one of their ends.
    """
    scale = 72 / axes.figure.dpi
    left, bottom, right, top = (scale * float(value) for value in axes.bbox.extents)
    frame = (left, bottom, right, top)
    centres = [(scale * float(x), scale * float(y)) for x, y in axes.transData.transform(points)] if points else []
    taken: list[Box] = [(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in centres]
    for text, index in labels:
        x, y = centres[index]
        width, height = _size(text, _FONT)
        box = min(_places(x, y, width, height, far=True), key=lambda box: _cost(box, taken, frame, (x, y)))
        taken.append(box)
        # From the marker's side on: in a wider font than was reckoned with it grows away from the marker.
        _write(axes, text, box, (x, y), _FONT, from_right=box[2] <= x)
    for text, value in lines:
        height_on_page = scale * float(axes.transData.transform((0.0, value))[1])
        width, height = _size(text, _FONT)
        choices = [
            (start, base, start + width, base + height)
            for start in (right - width - 2, left + 4)
            for base in (height_on_page + 1, height_on_page - height - 1)
        ]
        box = min(choices, key=lambda box: _cost(box, taken, frame, (box[0], box[1])))
        taken.append(box)
        _write(axes, text, box, None, _FONT, from_right=box[0] > left + 4)
    for text, index in small:
        x, y = centres[index]
        width, height = _size(text, _SMALL_FONT)
        free = [
            box
            for box in _places(x, y, width, height, far=False)
            if not any(overlap(box, other) for other in taken) and _inside(box, frame)
        ]
        if free:
            taken.append(free[0])
            _write(axes, text, free[0], None, _SMALL_FONT, from_right=free[0][2] <= x)


def _size(text: str, font: float) -> tuple[float, float]:
    return _LETTER * font * len(text), _LINE * font


def _places(x: float, y: float, width: float, height: float, *, far: bool) -> list[Box]:
    """Boxes around a point, the nearest first."""
    boxes = []
    for distance in (8.0, 18.0, 30.0, 46.0, 64.0) if far else (6.0,):
        for across, along in ((1, 0), (-1, 0), (0.6, 1), (-0.6, 1), (0.6, -1), (-0.6, -1), (0, 1), (0, -1)):
            left = x + across * distance - (width if across < 0 else width / 2 if across == 0 else 0)
            bottom = y + along * distance - (height if along < 0 else height / 2 if along == 0 else 0)
            boxes.append((left, bottom, left + width, bottom + height))
    return boxes


def _cost(box: Box, taken: Sequence[Box], frame: Box, point: tuple[float, float]) -> float:
    """What a place covers, with a little for its distance and much for leaving the frame."""
    covered = sum(overlap(box, other) for other in taken)
    outside = (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, frame)
    return covered + 4 * outside + 0.5 * _distance(box, point)


def _distance(box: Box, point: tuple[float, float]) -> float:
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    along = max(box[1] - point[1], 0.0, point[1] - box[3])
    return float((across**2 + along**2) ** 0.5)


def _inside(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _write(
    axes: Axes, text: str, box: Box, point: tuple[float, float] | None, font: float, *, from_right: bool = False
) -> None:
    axes.annotate(
        text,
        (box[2] if from_right else box[0], box[1] + 0.2 * font),
        xycoords="figure points",
        fontsize=font,
        zorder=6,
        annotation_clip=False,
        horizontalalignment="right" if from_right else "left",
        verticalalignment="baseline",
        alpha=1.0 if font == _FONT else 0.75,
    )
    if point is not None and _distance(box, point) > _NEAR:
        nearest = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
        axes.annotate(
            "", point, xytext=nearest, xycoords="figure points", textcoords="figure points", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": TEXT_COLOUR, "linewidth": 0.6, "alpha": 0.6, "shrinkB": 4},
        )  # fmt: skip
