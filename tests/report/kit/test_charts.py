"""Charts are well-formed, describe themselves, and can stand in one page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.charts import BASELINE_STYLE, Curve, Dot, curve_chart, dot_chart, styles
from shadow_defense.report.pages.run_charts import curve_panels, score_panels
from shadow_defense.report.records.run import Arm, Round, RunRecord

HOSTILE = 'a < b & "$x_1$"'


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def _ids(svg: str) -> list[str]:
    return re.findall(r'\sid="([^"]+)"', svg)


def _curves() -> list[Curve]:
    return [Curve(HOSTILE, (1, 2, 3), (3.0, 2.0, 1.0), styles(1)[0])]


def test_two_charts_share_no_id_and_refer_only_to_their_own() -> None:
    first, second = curve_chart("one", "loss", _curves()), curve_chart("two", "loss", _curves())
    assert _ids(first)
    assert not set(_ids(first)) & set(_ids(second))
    for svg in (first, second):
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert references
        assert set(references) <= set(_ids(svg))


def test_same_chart_twice_is_the_same_text() -> None:
    assert curve_chart("one", "loss", _curves()) == curve_chart("one", "loss", _curves())


def test_names_are_text_not_markup_or_formula() -> None:
    style = styles(1)[0]
    root = _parse(dot_chart("d", "PSNR", [Dot(HOSTILE, Estimate(1.0, (0.5, 1.5), 4), style)], None))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert HOSTILE in texts
    assert HOSTILE in root.attrib["aria-label"]


def test_charts_take_the_text_colour_of_the_page() -> None:
    dots = [Dot("shadow", Estimate(1.0, None, 1), styles(1)[0])]
    svg = dot_chart("d", "PSNR", dots, Dot("mean image", Estimate(0.4, None, 1), BASELINE_STYLE))
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "<style" not in svg


def test_interval_is_drawn_from_low_to_high() -> None:
    style = styles(2)[1]
    with_interval = dot_chart(
        "d", "t", [Dot("a", Estimate(1.0, (0.0, 2.0), 2), style), Dot("b", Estimate(2.0, None, 1), style)], None
    )
    lines = re.findall(rf'<path d="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+)\s*"[^>]*stroke: {style.colour.lower()}',
                       re.sub(r"\s+", " ", with_interval))  # fmt: skip
    assert len(lines) == 1
    left, top, right, bottom = map(float, lines[0])
    assert right > left
    assert top == bottom


def test_arms_get_different_styles() -> None:
    assert len(set(styles(12))) == 12


def test_curves_are_of_what_was_measured(record: RunRecord) -> None:
    arms = record.arms
    panels = curve_panels(arms, dict(zip(arms, styles(4), strict=True)))
    assert [panel.title.split(",")[0] for panel in panels] == ["Training loss", "F1 macro on the test images", "Noise"]
    final = arms["shadow"].history[-1]
    assert f"shadow ends at {final.loss:.3g}" in panels[0].svg
    assert f"shadow ends at {final.test['f1_macro']:.3g}" in panels[1].svg
    assert "uniform control" not in panels[2].svg


def test_curves_without_numbers_are_left_out() -> None:
    entry = Round(0, float("nan"), {"a": {"loss": 1.0}})
    arm = Arm(defense="none", summary="", acts_on=(), history=(entry,))
    assert curve_panels({"none": arm}, {"none": styles(1)[0]}) == []


def test_baseline_is_a_line_not_a_row(record: RunRecord) -> None:
    arms = record.arms
    panels = score_panels("s", record.tables[0], dict(zip(arms, styles(4), strict=True)))
    assert [panel.title for panel in panels] == [
        "PSNR, dB: lower is better protected",
        "SSIM: lower is better protected",
        "LPIPS: higher is better protected",
    ]
    svg = re.sub(r"\s+", " ", panels[0].svg)
    dashed = re.findall(r'<path d="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+ " [^>]*dasharray[^>]*stroke: currentColor', svg)
    assert len(dashed) == 1
    assert dashed[0][0] == dashed[0][1]
    texts = [element.text for element in _parse(panels[0].svg).iter() if element.tag.endswith("text")]
    assert [texts.count(name) for name in (*arms, "mean image")] == [1] * 5
