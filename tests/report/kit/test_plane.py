"""The plane draws every point where it belongs, up is private, and the file for documents stands alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.report.comparison_record import estimate
from tests.report.html_page import renamed

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.labels import Box, overlap
from shadow_defense.report.kit.plane import (
    front_corners,
    plane_markers,
    plane_svg,
    write_plane,
)
from shadow_defense.report.records.comparison import ComparisonRecord, DefenseEntry, Plane, PlanePoint

SVG = "{http://www.w3.org/2000/svg}"


def _markers(svg: str) -> dict[str, tuple[float, float]]:
    """Where each marker is, by the name in its title."""
    places = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        if title is not None and title.text is not None:
            use = next(group.iter(f"{SVG}use"))
            places[title.text.split(":")[0]] = (float(use.attrib["x"]), float(use.attrib["y"]))
    return places


def _entry(family: str) -> DefenseEntry:
    return DefenseEntry(defense="none", summary="", acts_on=(), share_bn="all", family=family, label=family)


def _small(metric: str = "ssim_whole") -> tuple[Plane, dict[str, DefenseEntry]]:
    numbers = {"none": (0.9, 0.8), "private": (0.2, 0.6), "useful": (0.7, 0.85), "poor": (0.8, 0.5)}
    points = tuple(
        PlanePoint(
            arm=name,
            privacy=estimate(privacy, 0.05),
            utility=Estimate(utility, None, 1),
            on_front=name in ("private", "useful"),
        )
        for name, (privacy, utility) in numbers.items()
    )
    plane = Plane(model="m", attack="a", metric=metric, points=points, baseline={"mean image": 0.5})
    return plane, {name: _entry(name) for name in numbers}


def test_up_is_private_and_right_is_useful_whichever_way_the_metric_runs() -> None:
    plane, defenses = _small()
    places = _markers(plane_svg("p", plane, defenses))
    assert set(places) == set(defenses)
    # In SVG y grows downwards.
    assert places["private"][1] < places["useful"][1] < places["poor"][1] < places["none"][1]
    assert places["poor"][0] < places["private"][0] < places["none"][0] < places["useful"][0]
    reversed_places = _markers(plane_svg("p", *_small("lpips_whole")))
    assert reversed_places["private"][1] > reversed_places["none"][1]


def test_distances_are_in_proportion() -> None:
    plane, defenses = _small()
    places = _markers(plane_svg("p", plane, defenses))
    across = (places["useful"][0] - places["none"][0]) / (places["none"][0] - places["poor"][0])
    assert across == pytest.approx(0.05 / 0.3, abs=1e-3)
    along = (places["none"][1] - places["poor"][1]) / (places["poor"][1] - places["private"][1])
    assert along == pytest.approx(0.1 / 0.6, abs=1e-3)


def test_front_is_labelled_and_steps_through_its_corners(comparison: ComparisonRecord) -> None:
    plane = comparison.planes[0]
    svg = plane_svg("p", plane, comparison.defenses)
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    for point in plane.points:
        if point.on_front:
            assert point.arm in texts
    assert "mean image" in texts
    assert "macro F1 on the test images (right: more useful)" in texts
    assert "SSIM of the reconstruction (up: better protected)" in texts
    corners = front_corners(plane_markers(plane, comparison.defenses))
    assert len(corners) == sum(point.on_front for point in plane.points)
    assert corners == sorted(corners)


def test_a_baseline_beyond_all_points_and_their_intervals_is_in_the_picture() -> None:
    plane, defenses = _small()
    for value in (0.01, 0.99):
        points = tuple(replace(point, privacy=estimate(0.5, 0.01)) for point in plane.points)
        svg = plane_svg("p", replace(plane, points=points, baseline={"mean image": value}), defenses)
        (name,) = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}text") if e.text == "mean image"]
        (frame,) = ElementTree.fromstring(svg).iter(f"{SVG}clipPath")
        (box,) = frame.iter(f"{SVG}rect")
        top, height = float(box.attrib["y"]), float(box.attrib["height"])
        assert top < float(name.attrib["y"]) < top + height


def test_every_point_has_a_title_with_its_numbers(comparison: ComparisonRecord) -> None:
    plane = comparison.planes[0]
    svg = plane_svg("p", plane, comparison.defenses)
    assert set(_markers(svg)) == {point.arm for point in plane.points}
    first = plane.points[0]
    assert f"SSIM {first.privacy.mean:.3f}" in svg.replace("\N{NO-BREAK SPACE}", " ")


def test_intervals_go_with_their_marker() -> None:
    """Hidden until the pointer is on it, so that they do not cover the picture."""
    plane, defenses = _small()
    root = ElementTree.fromstring(plane_svg("p", plane, defenses))
    points = [group for group in root.iter(f"{SVG}g") if group.get("class") == "point"]
    assert len(points) == len(plane.points)
    assert [sum(each.get("class") == "interval" for each in point) for point in points] == [2] * len(points)
    assert sum(each.get("class") == "interval" for each in root.iter()) == 2 * len(points)


def test_controls_are_grey() -> None:
    plane, defenses = _small()
    controls = {**defenses, "poor": replace(defenses["poor"], placement="uniform")}
    coloured, grey = (plane_svg("p", plane, each) for each in (defenses, controls))
    assert grey.count("#808080") > coloured.count("#808080")


def test_a_sweep_is_drawn_in_the_order_of_strength(comparison: ComparisonRecord) -> None:
    plane = comparison.planes[0]
    shuffled = replace(plane, points=plane.points[::-1])
    names = [each.point.arm for each in plane_markers(shuffled, comparison.defenses) if each.family == "shadow"]
    assert names == ["shadow 0.1", "shadow 0.19", "shadow 0.5", "shadow 1.0"]


def test_no_points_and_one_point() -> None:
    plane, defenses = _small()
    assert "of 0 defenses" in plane_svg("p", replace(plane, points=(), baseline={}), defenses)
    assert set(_markers(plane_svg("p", replace(plane, points=plane.points[1:2]), defenses))) == {"private"}


def test_hostile_names_are_text() -> None:
    hostile = '</svg><script>"$x_1$'
    plane, defenses = _small()
    plane = renamed(plane, {"private": hostile})
    defenses = {(hostile if name == "private" else name): _entry(hostile) for name in defenses}
    root = ElementTree.fromstring(plane_svg("p", plane, defenses))
    assert hostile in [element.text for element in root.iter(f"{SVG}text")]
    assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_file_stands_alone_on_white(tmp_path: Path, comparison: ComparisonRecord) -> None:
    write_plane(tmp_path / "plane.svg", comparison.planes[0], comparison.defenses)
    text = (tmp_path / "plane.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    drawn = [child for child in root if not child.tag.endswith("style")]
    assert drawn[0].tag.endswith("rect")
    assert drawn[0].attrib == {"width": "100%", "height": "100%", "fill": "#fff"}
    assert "color: #1d2429" in root.attrib["style"]
    assert re.findall(r'(?:href|src)="(?!#)', text) == []


def test_labels_of_front_points_do_not_cover_one_another() -> None:
    assert overlap((0.0, 0.0, 4.0, 4.0), (2.0, 3.0, 9.0, 9.0)) == 2
    plane, defenses = _small()
    # Two front points almost on one spot: their labels must part.
    close = tuple(replace(plane.points[1], arm=name) for name in ("private", "useful"))
    svg = plane_svg("p", replace(plane, points=close, baseline={}), defenses)
    texts = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}text") if e.text in defenses]
    # The legend names every family too, further right than any point.
    private, useful = (min(_box(each) for each in texts if each.text == name) for name in ("private", "useful"))
    assert overlap(private, useful) == 0


def _box(text: ElementTree.Element) -> Box:
    """Of letters of half the font's width or more, from the anchor to its side."""
    x, y, width = float(text.attrib["x"]), float(text.attrib["y"]), 6.0 * len(text.text or "")
    left = x - width if "text-anchor: end" in text.attrib["style"] else x
    return left, y - 11, left + width, y
