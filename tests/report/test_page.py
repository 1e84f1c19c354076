"""The page is one file that loads nothing, escapes everything, and survives thin results."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.report.content import ArmPictures, Content, Exhibit
from shadow_defense.report.pages.run import render_page, write_report

HOSTILE = """<script>alert(1)</script> & "quoted" 'single' {{ 1 + 1 }} $x_1$"""

# Attributes from which a browser loads, and elements that may have none.
LOADING = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "background")


class Page(HTMLParser):
    """What a test asks of a page: its elements, its text outside script and style, and what it refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def shown(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


@pytest.fixture(scope="module")
def html(content: Content) -> str:
    return render_page(content)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_renamed(key, names): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _thin(content: Content) -> dict[str, Any]:
    """Results of a run with one client, one arm and no attack."""
    results = copy.deepcopy(dict(content.results))
    results["arms"] = {"none": results["arms"]["no defense"]}
    results["data"]["clients"] = {"clinic": results["data"]["clients"]["hospital-1"]}
    return results | {"tables": [], "verdict": [], "notes": [], "threat_models": {}, "attack_settings": {}}


def test_nothing_is_loaded_from_outside(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.elements:
        for name in LOADING:
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html
    assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    policy = next(meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


def test_ids_are_unique_and_links_lead_somewhere(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.named("a")]
    assert links
    assert {str(link)[1:] for link in links} <= set(ids)


def test_pictures_and_controls_are_named(html: str) -> None:
    page = Page(html)
    undescribed = [image for image in page.named("img") if not image.get("alt") and "src" in image]
    assert undescribed == []
    assert all(control.get("aria-label") for control in page.named("input"))
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(headings))


def test_every_part_is_there(html: str, content: Content) -> None:
    shown = Page(html).shown()
    for sentence in (*content.results["verdict"], *content.results["notes"]):
        assert sentence in shown
    for name in (*content.results["arms"], *content.results["data"]["clients"], *content.results["data"]["classes"]):
        assert name in shown
    assert content.results["command"] in shown
    assert "torch 2.13.0" in shown
    assert "steps: 2400" in shown
    exhibits = [image for image in Page(html).named("img") if str(image.get("alt")).startswith("What the attack")]
    assert len(exhibits) == sum(len(exhibit.arms) for exhibit in content.exhibits)


def test_same_content_gives_the_same_page(html: str, content: Content) -> None:
    assert render_page(content) == html


def test_all_text_is_escaped(content: Content) -> None:
    places = ["no defense", "hospital-1", "face", "inverting gradients", content.results["title"]]
    places += [*content.results["verdict"], *content.results["notes"], content.results["command"]]
    names = {place: f"{HOSTILE} {index}" for index, place in enumerate(places)}
    exhibits = tuple(
        Exhibit(
            HOSTILE,
            names.get(exhibit.client, exhibit.client),
            names.get(exhibit.attack, exhibit.attack),
            exhibit.round,
            names.get(exhibit.class_name, exhibit.class_name),
            exhibit.original,
            _renamed(dict(exhibit.arms), names),
        )
        for exhibit in content.exhibits
    )
    page = Page(render_page(Content(_renamed(dict(content.results), names), exhibits)))
    assert len(page.named("script")) == 1
    for name in names.values():
        assert name in page.shown()
    assert any(arm.get("data-client") == names["hospital-1"] for arm in page.named("article"))


def test_no_exhibits_no_attacks_one_client(content: Content) -> None:
    shown = Page(render_page(Content(_thin(content)))).shown()
    assert "No attack was run" in shown
    assert "No reconstruction was kept" in shown
    assert "Where the noise went" not in shown
    assert "1 client trained" in shown


def test_missing_measurements(content: Content) -> None:
    results = _thin(content)
    results["arms"]["none"]["test"]["auroc"] = None
    row = {"arm": "none", "images": 1, "metrics": {"psnr_whole": {"mean": 9.0, "interval": None}}, "difference": None}
    empty = {"arm": "mean image", "images": 0, "metrics": {}, "difference": {}}
    results["tables"] = [{"attack": "a", "round": 1, "rows": [row, empty]}]
    shown = Page(render_page(Content(results))).shown()
    assert "9.00" in shown
    assert not re.search(r"\b(nan|None|Undefined)\b", shown)


def test_colour_images_and_long_names(content: Content) -> None:
    name = "a" * 300
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    pictures = ArmPictures(image, {"psnr_whole": 12.0}, noise=image - 0.5, cam=image[0])
    exhibit = Exhibit("train/0", "clinic", "a", 1, "face", image, {name: pictures})
    results = _thin(content)
    results["arms"] = {name: results["arms"]["none"]}
    page = Page(render_page(Content(results, (exhibit,))))
    assert name in page.shown()
    assert [image.get("class") for image in page.named("img") if image.get("width")] == [None] * 5


def test_report_is_written_whole(tmp_path: Path, content: Content) -> None:
    thin = dataclasses.replace(content, exhibits=content.exhibits[:1])
    write_report(tmp_path / "run" / "report.html", thin)
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == render_page(thin)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]


def test_script_runs_in_a_browser(tmp_path: Path, html: str) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to run the page's script")
    # The page's own script has run when this one does: it drags the first slider and shows all cards.
    check = """
    const range = document.querySelector('.compare input'), arm = document.querySelector('.compare select');
    range.value = 20; range.dispatchEvent(new Event('input'));
    arm.value = '3'; arm.dispatchEvent(new Event('change', {bubbles: true}));
    const stage = document.querySelector('.stage'), pictures = document.querySelectorAll('.pictures img');
    const form = document.querySelector('form.selectors');
    const before = form.querySelector('output').textContent;
    for (const select of form.querySelectorAll('select')) select.value = '';
    form.dispatchEvent(new Event('change'));
    document.title = ['checked', stage.style.getPropertyValue('--cut'), range.getAttribute('aria-valuetext'),
      stage.querySelectorAll('img')[0].src === pictures[3].src,
      stage.querySelectorAll('img')[1].src === pictures[0].src,
      before, form.querySelector('output').textContent,
      document.documentElement.scrollWidth <= innerWidth].join('; ');
    """
    file = tmp_path / "report.html"
    file.write_text(html.replace("</body>", f"<script>{check}</script></body>"), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert title[1].split("; ") == [
        "checked", "20%", "20 % original", "true", "true", "2 of 24 images shown", "24 of 24 images shown", "true",
    ]  # fmt: skip
