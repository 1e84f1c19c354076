"""The page of a run is one file that loads nothing, escapes everything, and survives thin results."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.report.html_page import HOSTILE, Page, renamed

from shadow_defense.errors import RunError
from shadow_defense.files import write_json
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.pages.run import render_run
from shadow_defense.report.records.reading import load_record, record_values, write_record
from shadow_defense.report.records.run import ArmPictures, Exhibit, RunRecord
from shadow_defense.report.records.scores import Origin, Row, ScoreTable
from shadow_defense.report.sentences.origin import origin_sentences


@pytest.fixture(scope="module")
def html(record: RunRecord, exhibits: tuple[Exhibit, ...]) -> str:
    return render_run(record, exhibits)


@pytest.fixture
def thin(record: RunRecord) -> RunRecord:
    """A run with one client, one arm and no attack."""
    return one_arm(record, "none")


def one_arm(record: RunRecord, name: str) -> RunRecord:
    return replace(
        record,
        arms={name: record.arms["no defense"]},
        utilities=(replace(record.utilities[0], arm=name),),
        data=replace(record.data, clients={"clinic": record.data.clients["hospital-1"]}),
        tables=(),
        attacks={},
        verdict=(),
        notes=(),
    )


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


def test_all_text_is_escaped(record: RunRecord, exhibits: tuple[Exhibit, ...]) -> None:
    places = ["no defense", "hospital-1", "face", "inverting gradients", record.title, record.command]
    places += [*record.verdict, *record.notes]
    names = {place: f"{HOSTILE} {index}" for index, place in enumerate(places)}
    changed = [
        replace(
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
    page = Page(render_run(renamed(record, names), changed))
    page.check(scripts=1)
    for name in names.values():
        assert name in page.shown()
    assert any(card.get("data-client") == names["hospital-1"] for card in page.named("article"))


def test_no_exhibits_no_attacks_one_client(thin: RunRecord) -> None:
    shown = Page(render_run(thin)).shown()
    for text in ("No attack was run", "No reconstruction was kept", "1 client trained"):
        assert text in shown
    assert "Where the noise went" not in shown


def test_missing_measurements(thin: RunRecord) -> None:
    row = Row(arm="none", images=1, metrics={"psnr_whole": Estimate(9.0, None, 1)})
    table = ScoreTable(attack="a", round=1, rows=(row, Row(arm="mean image", images=0, metrics={})))
    page = Page(render_run(replace(thin, tables=(table,))))
    page.check(scripts=1)
    assert "9.00" in page.shown()


def test_results_are_read_as_they_were_written(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path / "results.json", record)
    assert load_record(RunRecord, tmp_path / "results.json", "evaluate again") == record


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"arms": {"none": {"defense": "none"}}}, r"cannot read .*results\.json: arms\.none\."),
        ({"tables": [{"attack": "a", "round": "x", "rows": []}]}, r"cannot read .*results\.json: tables\.0\.round: "),
        ({"schema": 1}, r"results\.json holds schema 1, written by shadow-defense 0\.1\.0, .* reads schema 2"),
        ({"schema": 3, "versions": 5}, "holds schema 3, written by shadow-defense of an unknown version, "),
    ],
)
def test_damaged_results_are_refused_in_a_line(
    record: RunRecord, tmp_path: Path, damage: dict[str, Any], said: str
) -> None:
    write_json(tmp_path / "results.json", {**record_values(record), **damage})
    with pytest.raises(RunError, match=rf"{said}.*evaluate again$"):
        load_record(RunRecord, tmp_path / "results.json", "evaluate again")


def test_what_is_of_another_day_or_version_is_said(thin: RunRecord) -> None:
    today = Origin("score", "a1", "seed 0, none: ig", "2026-11-22T10:00:00+00:00", thin.versions)
    assert origin_sentences(replace(thin, tasks=(today,))) == []
    earlier = replace(today, key="b2", created="2026-11-20T10:00:00+00:00")
    older = replace(earlier, key="c3", versions={"torch": "2.9.0"}, created="2026-11-19T10:00:00+00:00")
    record = replace(thin, tasks=(today, earlier, older))
    days, versions = origin_sentences(record)
    assert "2 results of 3" in days and "2026-11-19 to 2026-11-20" in days
    assert "1 result of 3" in versions and "torch 2.9.0" in versions
    shown = Page(render_run(record)).shown()
    assert days in shown and versions in shown
    for task in record.tasks:
        assert f"score-{task.key} {task.created} {task.about}" in shown


def test_colour_images_and_long_names(record: RunRecord) -> None:
    name = "a" * 300
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    pictures = ArmPictures(image, {"psnr_whole": 12.0}, noise=image - 0.5, cam=image[0])
    exhibit = Exhibit("train/0", "clinic", "a", 1, "face", image, {name: pictures})
    page = Page(render_run(one_arm(record, name), (exhibit,)))
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
