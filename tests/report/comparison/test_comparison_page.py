"""The page of a comparison is one file that loads nothing, escapes everything, and survives thin content."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shadow_defense.report.comparison_content import ComparisonContent, ComparisonPictures
from shadow_defense.report.pages.compare import render_comparison, write_comparison

HOSTILE = """<script>alert(1)</script> & "quoted" 'single' {{ 1 + 1 }} $x_1$ </svg>"""
LOADING = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "background")


class Page(HTMLParser):
    """The elements of a page, its ids, and its text outside style and titles of markers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def shown(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


def renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {renamed(key, names): renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def html(content: ComparisonContent) -> str:
    return render_comparison(content)


def test_nothing_is_loaded_and_no_script_runs(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.elements:
        for name in LOADING:
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_ids_are_unique_and_links_lead_somewhere(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for tag, attributes in page.elements if tag == "a"]
    links += [str(attributes["xlink:href"]) for tag, attributes in page.elements if tag == "use"]
    references = {link.removeprefix("#") for link in (*links, *re.findall(r"url\((#[^)]+)\)", html))}
    assert references
    assert references <= set(ids)


def test_numbers_and_names_appear(html: str, comparison: dict[str, Any]) -> None:
    shown = Page(html).shown()
    for name in (*comparison["defenses"], *comparison["models"], *comparison["attacks"], "mean image", "random update"):
        assert name in shown
    row = comparison["tables"][0]["rows"][2]
    psnr, f1 = row["metrics"]["psnr_whole"], row["utility_difference"]["f1_macro"]
    half = (psnr["interval"][1] - psnr["interval"][0]) / 2
    assert f"{psnr['mean']:.2f} ± {half:.2f}" in shown
    assert f"{abs(f1['mean']):.3f} ± 0.030" in shown
    assert f"{row['metrics']['lpips_inside']['mean']:.3f} ± 0.030" in shown
    assert f"{row['cost']['time']:.2f}×" in shown
    assert "8.2 ± 0.3 (1e-05)" in shown
    assert "acceptance rate 0.700" in shown
    for sentence in (*comparison["verdict"], *comparison["notes"]):
        assert sentence in shown
    assert comparison["failures"][0]["error"] in shown
    assert comparison["left_out"][0]["reason"] in shown
    assert comparison["data"]["sha256"]["2"] in shown
    assert "torch 2.13.0" in shown
    assert comparison["command"] in shown


def test_stars_mark_the_front_of_each_plane(html: str, comparison: dict[str, Any]) -> None:
    front = sum(point["on_front"] for plane in comparison["planes"] for point in plane["points"])
    assert html.count('class="star"') == front
    assert html.count('<tr class="front">') == front


def test_one_picture_for_each_defense(html: str, content: ComparisonContent) -> None:
    alts = [str(a.get("alt")) for tag, a in Page(html).elements if tag == "img"]
    assert sum(alt.startswith("What the attack") for alt in alts) == sum(len(p.rebuilt) for p in content.pictures)
    assert sum(alt.startswith("Original image") for alt in alts) == len(content.pictures)


def test_hostile_names_stay_text(content: ComparisonContent) -> None:
    comparison = dict(content.comparison)
    places = ["shadow 1.0", "shadow", "convnet", "gradinversion", "hospital-1", "resnet18, soteria strong, seed 2"]
    places += [comparison["title"], comparison["command"], *comparison["verdict"], *comparison["notes"]]
    places += ["batch norm mixes the samples", "stopped by the system: out of memory", "Images are matched by PSNR."]
    names = {place: f"{HOSTILE} {index}" for index, place in enumerate(dict.fromkeys(places))}
    pictures = tuple(
        ComparisonPictures(
            names.get(each.model, each.model),
            names.get(each.attack, each.attack),
            each.round,
            names[each.client],
            HOSTILE,
            each.original,
            {names.get(name, name): image for name, image in each.rebuilt.items()},
        )
        for each in content.pictures[:1]
    )
    html = render_comparison(ComparisonContent(renamed(copy.deepcopy(comparison), names), pictures))
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.elements}
    assert html.count("</svg>") == len(comparison["planes"])
    for place, name in names.items():
        assert name in page.shown(), place
    assert "alert(1)" in page.shown()
    assert "{{ 1 + 1 }}" in page.shown()


def test_no_tables_no_planes_no_pictures(comparison: dict[str, Any]) -> None:
    empty: dict[str, Any] = {
        key: [] for key in ("tables", "planes", "ablations", "failures", "left_out", "verdict", "notes")
    }
    shown = Page(render_comparison(ComparisonContent({**comparison, **empty}))).shown()
    assert "No attack was scored" in shown
    for heading in ("What the attacker sees", "Privacy against utility", "What is missing", "Ablations", "Verdict"):
        assert heading not in shown


def test_missing_measurements_are_dashes(comparison: dict[str, Any]) -> None:
    row = {"defense": "fedavg", "images": 1, "seeds": 1, "metrics": {"psnr_whole": {"mean": 9.0, "interval": None}}}
    row |= dict.fromkeys(("difference", "utility", "utility_difference", "cost", "epsilon")) | {"measured": {}}
    table = {"model": "convnet", "attack": "a", "round": 1, "rows": [row]}
    thin = {**comparison, "tables": [table], "planes": [], "ablations": []}
    shown = Page(render_comparison(ComparisonContent(thin))).shown()
    assert "9.00" in shown
    assert "1 image, 1 seed" in shown


def test_page_is_written_whole_and_is_the_same_twice(tmp_path: Path, content: ComparisonContent, html: str) -> None:
    write_comparison(tmp_path / "out" / "comparison.html", content)
    assert (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8") == html
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.html"]
