"""The page of a run is one file that loads nothing, escapes everything, and survives thin results."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.report.html_page import HOSTILE, Page, renamed

from shadow_defense.errors import RunError
from shadow_defense.report.pages.run import render_run
from shadow_defense.report.records.run import ArmPictures, Exhibit, RunRecord, read_run


@pytest.fixture(scope="module")
def html(record: RunRecord, exhibits: tuple[Exhibit, ...]) -> str:
    return render_run(record, exhibits)


@pytest.fixture
def thin(results: dict[str, Any]) -> dict[str, Any]:
    """Results of a run with one client, one arm and no attack."""
    clients = {"clinic": results["data"]["clients"]["hospital-1"]}
    changes = {"arms": {"none": results["arms"]["no defense"]}, "data": {**results["data"], "clients": clients}}
    return {**results, **changes, "tables": [], "verdict": [], "notes": [], "threat_models": {}, "attack_settings": {}}


def test_page_is_whole_and_the_same_twice(html: str, record: RunRecord, exhibits: tuple[Exhibit, ...]) -> None:
    Page(html).check(scripts=1)
    assert render_run(record, exhibits) == html


def test_every_part_is_there(html: str, record: RunRecord, exhibits: tuple[Exhibit, ...]) -> None:
    page = Page(html)
    for text in (*record.verdict, *record.notes, *record.arms, *record.data.clients, *record.data.classes):
        assert text in page.shown()
    for text in (record.command, "torch 2.13.0", "steps: 2400"):
        assert text in page.shown()
    assert all(control.get("aria-label") for control in page.named("input"))
    shown = [image for image in page.named("img") if str(image.get("alt")).startswith("What the attack")]
    assert len(shown) == sum(len(exhibit.arms) for exhibit in exhibits)


def test_all_text_is_escaped(results: dict[str, Any], exhibits: tuple[Exhibit, ...]) -> None:
    places = ["no defense", "hospital-1", "face", "inverting gradients", results["title"], results["command"]]
    places += [*results["verdict"], *results["notes"]]
    names = {place: f"{HOSTILE} {index}" for index, place in enumerate(places)}
    changed = [
        dataclasses.replace(
            exhibit,
            sample_id=HOSTILE,
            arms=renamed(dict(exhibit.arms), names),
            **{
                key: names.get(getattr(exhibit, key), getattr(exhibit, key))
                for key in ("client", "attack", "class_name")
            },
        )
        for exhibit in exhibits[:13]
    ]
    page = Page(render_run(read_run(renamed(results, names)), changed))
    page.check(scripts=1)
    for name in names.values():
        assert name in page.shown()
    assert any(card.get("data-client") == names["hospital-1"] for card in page.named("article"))


def test_no_exhibits_no_attacks_one_client(thin: dict[str, Any]) -> None:
    shown = Page(render_run(read_run(thin))).shown()
    for text in ("No attack was run", "No reconstruction was kept", "1 client trained"):
        assert text in shown
    assert "Where the noise went" not in shown


def test_missing_measurements(thin: dict[str, Any]) -> None:
    row = {"arm": "none", "images": 1, "metrics": {"psnr_whole": {"mean": 9.0, "interval": None}}, "difference": None}
    empty = {"arm": "mean image", "images": 0, "metrics": {}, "difference": {}}
    page = Page(render_run(read_run({**thin, "tables": [{"attack": "a", "round": 1, "rows": [row, empty]}]})))
    page.check(scripts=1)
    assert "9.00" in page.shown()


def test_damaged_results_are_refused_in_a_line(thin: dict[str, Any]) -> None:
    for damage in ({"arms": {"none": {"defense": "none"}}}, {"tables": [{"attack": "a", "round": "x", "rows": []}]}):
        with pytest.raises(RunError, match=r"^cannot read results\.json: .*; compute them again$"):
            read_run({**thin, **damage}, "results.json")


def test_colour_images_and_long_names(thin: dict[str, Any]) -> None:
    name = "a" * 300
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    pictures = ArmPictures(image, {"psnr_whole": 12.0}, noise=image - 0.5, cam=image[0])
    exhibit = Exhibit("train/0", "clinic", "a", 1, "face", image, {name: pictures})
    page = Page(render_run(read_run({**thin, "arms": {name: thin["arms"]["none"]}}), (exhibit,)))
    assert name in page.shown()
    assert [image.get("class") for image in page.named("img") if image.get("width")] == [None] * 5


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
