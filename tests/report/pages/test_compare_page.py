"""The page, the document and the CSV of a comparison: whole, escaped, and with every number."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
import torch
from tests.report.html_page import HOSTILE, Page, renamed

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.formatting import plain
from shadow_defense.report.pages.compare import (
    comparison_markdown,
    comparison_numbers,
    comparison_summary,
    render_comparison,
)
from shadow_defense.report.records.comparison import ComparisonPictures, ComparisonRecord
from shadow_defense.report.records.scores import Row, ScoreTable, measurements
from shadow_defense.seeds import named_generator


@pytest.fixture(scope="module")
def pictures(comparison: ComparisonRecord) -> tuple[ComparisonPictures, ...]:
    image = torch.rand(1, 16, 16, generator=named_generator(0, "picture"))
    return tuple(
        ComparisonPictures(model, attack, 1, "hospital-1", "face", image, dict.fromkeys(comparison.defenses, image))
        for model in comparison.models
        for attack in comparison.attacks
    )


@pytest.fixture(scope="module")
def html(comparison: ComparisonRecord, pictures: tuple[ComparisonPictures, ...]) -> str:
    return render_comparison(comparison, pictures)


def test_page_is_whole(html: str) -> None:
    Page(html).check()


def test_numbers_and_names_appear(html: str, comparison: ComparisonRecord) -> None:
    page = Page(html)
    shown = plain(page.shown())
    for name in (*comparison.defenses, *comparison.models, *comparison.attacks, "mean image", "random update"):
        assert name in shown
    row = comparison.tables[0].rows[2]
    assert f"{row.metrics['psnr_whole'].mean:.2f} ± 1.30" in shown
    assert f"{row.utility_difference['f1_macro'].mean:+.3f} ± 0.030" in shown
    assert f"{row.metrics['lpips_inside'].mean:.3f} ± 0.030" in shown
    assert f"{row.cost['time']:.2f}×" in shown
    for text in ("8.2 ± 0.3 (1e-05)", "acceptance rate 0.700", "torch 2.13.0", comparison.command):
        assert text in shown
    for text in (*comparison.verdict, *comparison.notes, comparison.failures[0].error, comparison.left_out[0].reason):
        assert text in shown
    assert isinstance(comparison.data.sha256, dict) and comparison.data.sha256["2"] in shown
    alts = [str(image.get("alt")) for image in page.named("img")]
    assert sum(alt.startswith("What the attack") for alt in alts) == 4 * len(comparison.defenses)
    assert sum(alt.startswith("Original image") for alt in alts) == 4


def test_stars_mark_the_front_of_each_plane(html: str, comparison: ComparisonRecord) -> None:
    front = sum(point.on_front for plane in comparison.planes for point in plane.points)
    assert html.count('class="star"') == html.count('<tr class="front">') == front


def test_hostile_names_stay_text(comparison: ComparisonRecord, pictures: tuple[ComparisonPictures, ...]) -> None:
    places = ["shadow 1.0", "shadow", "convnet", "gradinversion", "hospital-1", "face", comparison.title]
    places += [comparison.command, *comparison.verdict, *comparison.notes, comparison.failures[0].cell]
    places += [comparison.failures[0].error, comparison.left_out[0].reason]
    names = {place: f"{HOSTILE} {index}" for index, place in enumerate(places)}
    html = render_comparison(renamed(comparison, names), renamed(pictures[1:2], names))
    page = Page(html)
    page.check()
    assert html.count("</svg>") == len(comparison.planes)
    for place, name in names.items():
        assert name in page.shown(), place


def test_no_tables_no_planes_no_pictures(comparison: ComparisonRecord) -> None:
    empty = replace(
        comparison, tables=(), ablations=(), failures=(), left_out=(), verdict=(), notes=()
    )  # fmt: skip
    page = Page(render_comparison(empty))
    page.check()
    assert "No attack was scored" in page.shown()
    for heading in ("What the attacker sees", "Privacy against utility", "What is missing", "Ablations", "Verdict"):
        assert heading not in page.shown()


def test_missing_measurements_are_dashes(comparison: ComparisonRecord) -> None:
    row = Row(arm="fedavg", images=1, metrics={"psnr_whole": Estimate(9.0, None, 1)})
    table = ScoreTable(model="convnet", attack="a", round=1, rows=(row,))
    page = Page(render_comparison(replace(comparison, tables=(table,), ablations=())))
    page.check()
    assert "9.00" in page.shown()
    assert "1 image, 1 seed" in page.shown()


def test_the_csv_holds_every_number_once(comparison: ComparisonRecord) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_numbers(comparison).csv())))
    places = ("part", "model", "attack", "round", "defense", "kind", "measure")
    found = {tuple(line[place] for place in places): line for line in lines}
    expected = {
        (part, table.model, table.attack, str(table.round or "all"), each.row.arm, each.kind, each.name): each
        for part, tables in (("comparison", comparison.tables), ("ablation", comparison.ablations))
        for table in tables
        for each in measurements(table)
    }
    assert found.keys() == expected.keys() and len(found) == len(lines)
    for place, each in expected.items():
        line, difference = found[place], each.difference
        assert float(line["mean"]) == each.value.mean
        assert (line["low"] == "") == (each.value.interval is None)
        assert line["difference_mean"] == ("" if difference is None else repr(difference.mean))
    kinds = {line["kind"] for line in lines}
    assert kinds == {"privacy", "utility", "cost", "measured", "guarantee"}


def test_the_csv_says_what_each_arm_is(comparison: ComparisonRecord) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_numbers(comparison).csv())))
    shadow = [line for line in lines if line["defense"] == "shadow 0.19"]
    assert {(line["family"], line["strength"], line["images"], line["seeds"]) for line in shadow} == {
        ("shadow", "0.19", "24", "3")
    }
    starred = {(line["model"], line["attack"], line["defense"]) for line in lines if line["on_front"] == "1"}
    front = {
        (plane.model, plane.attack, point.arm)
        for plane in comparison.planes
        for point in plane.points
        if point.on_front
    }
    assert starred == front
    assert {line["on_front"] for line in lines if line["round"] != "all" or line["part"] == "ablation"} == {""}


def test_the_document_has_the_same_numbers(comparison: ComparisonRecord) -> None:
    text = comparison_markdown(comparison)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == sum(len(table.rows) + 2 for table in (*comparison.tables, *comparison.ablations))
    row = comparison.tables[0].rows[2]
    psnr, difference = row.metrics["psnr_whole"].mean, row.difference["psnr_whole"].mean
    line = next(line for line in lines if line.startswith("| shadow 0.19 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"{psnr:.2f} ± 1.30 ({difference:.2f} ± 0.04)\\*"
    assert cells[8:11] == [f"{row.cost['memory']:.2f}×", "-", "all"]
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert {line.count("|") - 1 for line in lines[: len(comparison.tables[0].rows) + 2]} == {len(head)}
    for heading in ("## Comparison", "## Ablations", "## Left out", "## Failed", "## Notes"):
        assert heading in text


def test_the_document_shows_hostile_text_as_text(comparison: ComparisonRecord) -> None:
    text = comparison_markdown(replace(comparison, notes=("<script>a</script> [x](y)\n# no heading `code`",)))
    assert r"- \<script\>a\</script\> \[x\](y) \# no heading \`code\`" in text


def test_the_terminal_shows_every_arm_within_its_width(comparison: ComparisonRecord) -> None:
    from rich.console import Console

    name = "[bold]fedavg[/bold] with a name \x1b[2J that is longer than anybody would type"
    tables = comparison_summary(renamed(comparison, {"fedavg": name}))
    assert len(tables) == len(comparison.planes)
    console = Console(file=io.StringIO(), width=200)
    console.print(tables[0].terminal())
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "\x1b" not in printed
    assert max(len(line) for line in printed.splitlines()) <= 120
    for text in ("[bold]fedavg[/bold]", "shadow 0.19", "random update"):
        assert text in printed
