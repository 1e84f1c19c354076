"""Charts are well-formed, describe themselves, and can stand in one page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.charts import Curve, Level, dot_chart, line_chart, styles
from shadow_defense.report.pages.run_charts import curve_panels, score_panels
from shadow_defense.report.records.run import Arm, Round, RunRecord

HOSTILE = 'a < b & "$x_1$"'


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def _ids(svg: str) -> list[str]:
    return re.findall(r'\sid="([^"]+)"', svg)


def _curves() -> list[Curve]:
    return [Curve(HOSTILE, (1, 2, 3), [Estimate(value, None, 1) for value in (3.0, 2.0, 1.0)], styles("a")["a"])]


def test_two_charts_share_no_id_and_refer_only_to_their_own() -> None:
    first, second = line_chart("one", "loss", _curves()), line_chart("two", "loss", _curves())
    assert _ids(first)
    assert not set(_ids(first)) & set(_ids(second))
    for svg in (first, second):
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert references
        assert set(references) <= set(_ids(svg))


def test_same_chart_twice_is_the_same_text() -> None:
    assert line_chart("one", "loss", _curves()) == line_chart("one", "loss", _curves())


def test_names_are_text_not_markup_or_formula() -> None:
    root = _parse(dot_chart("d", "PSNR", {HOSTILE: Estimate(1.0, (0.5, 1.5), 4)}, styles([HOSTILE]), None))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert HOSTILE in texts
    assert HOSTILE in root.attrib["aria-label"]


def test_charts_take_the_text_colour_of_the_page() -> None:
    dots = {"shadow": Estimate(1.0, None, 1)}
    svg = dot_chart("d", "PSNR", dots, styles(dots), Level("mean image", 0.4))
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "<style" not in svg


def test_interval_is_drawn_from_low_to_high() -> None:
    style = styles("ab")["b"]
    dots = {"a": Estimate(1.0, (0.0, 2.0), 2), "b": Estimate(2.0, None, 1)}
    with_interval = dot_chart("d", "t", dots, dict.fromkeys(dots, style), None)
    lines = re.findall(rf'<path d="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+)\s*"[^>]*stroke: {style.colour.lower()}',
                       re.sub(r"\s+", " ", with_interval))  # fmt: skip
    assert len(lines) == 1
    left, top, right, bottom = map(float, lines[0])
    assert right > left
    assert top == bottom


def test_a_curve_shows_its_intervals_its_ring_and_the_levels() -> None:
    style = styles("ab")["b"]
    values = [Estimate(0.5, (0.4, 0.6), 8), Estimate(0.3, None, 8)]

    def chart(ring: float | None, values: list[Estimate]) -> str:
        curve = Curve("a", (0.0, 1.5), values, style, ring)
        return line_chart("c", "t", [curve], [Level("target", 0.4)], along="strength")

    ringed, plain = chart(1.5, values), chart(None, [Estimate(0.5, None, 8), values[1]])
    colour = f"stroke: {style.colour.lower()}"
    assert ringed.count(colour) == plain.count(colour) + 1
    assert ringed.count("<use") == chart(None, values).count("<use") + 1
    assert 'aria-label="t by strength: a from 0.5 at 0 to 0.3 at 1.5; target 0.4"' in ringed
    assert ">target<" in ringed


def test_no_two_arms_look_alike() -> None:
    assert len(set(styles(map(str, range(12))).values())) == 12
    assert len({(style.colour, style.marker) for style in styles(map(str, range(43))).values()}) == 43


def test_curves_are_of_what_was_measured(record: RunRecord) -> None:
    arms = record.arms
    panels = curve_panels(arms, styles(arms))
    assert [panel.title.split(",")[0] for panel in panels] == ["Training loss", "Macro F1 on the test images", "Noise"]
    final = arms["shadow"].history[-1]
    for panel, value in zip(panels, (final.loss, final.test["f1_macro"]), strict=False):
        assert re.search(rf"; shadow from \S+ at \d to {value:.3g} at 30;", panel.svg)
    assert "uniform control" not in panels[2].svg


def test_curves_without_numbers_are_left_out() -> None:
    entry = Round(0, float("nan"), {"a": {"loss": 1.0}})
    arm = Arm(title="None", defense="none", summary="", acts_on=(), history=(entry,))
    assert curve_panels({"none": arm}, styles(["none"])) == []


def test_baseline_is_a_line_not_a_row(record: RunRecord) -> None:
    arms = record.arms
    panels = score_panels("s", record.tables[0], styles(arms))
    assert [panel.title for panel in panels] == [
        "PSNR (dB): lower is better protected",
        "SSIM: lower is better protected",
        "LPIPS: higher is better protected",
    ]
    svg = re.sub(r"\s+", " ", panels[0].svg)
    dashed = re.findall(r'<path d="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+ " [^>]*dasharray[^>]*stroke: currentColor', svg)
    assert len(dashed) == 1
    assert dashed[0][0] == dashed[0][1]
    texts = [element.text for element in _parse(panels[0].svg).iter() if element.tag.endswith("text")]
    assert [texts.count(name) for name in (*arms, "mean image")] == [1] * 5
