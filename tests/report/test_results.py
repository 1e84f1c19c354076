"""Whatever a command wrote opens the same way: a line on it, its numbers as a frame, its page somewhere else."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.report.comparison_record import build_comparison
from tests.report.each_record import (
    build_audit,
    build_calibration,
    build_certificate,
    build_pair,
    build_risks,
    build_textures,
)

import shadow_defense
from shadow_defense.errors import RunError
from shadow_defense.experiment.audit.running import PAGE as AUDIT_PAGE
from shadow_defense.experiment.audit.running import PAIR
from shadow_defense.experiment.protecting.calibrating import write_textures
from shadow_defense.experiment.results import WRITTEN
from shadow_defense.report.numbers import numbers
from shadow_defense.report.records.evidence import EvidenceRecord
from shadow_defense.report.records.reading import load_record, write_record
from shadow_defense.report.records.run import RunRecord
from shadow_defense.report.records.scores import Header

STUDY = Path(__file__).resolve().parents[2] / "docs" / "results" / "evidence-breastmnist.json"

OTHERS: dict[str, Callable[[], Header]] = {
    "comparison.json": build_comparison,
    "evidence-*.json": lambda: load_record(EvidenceRecord, STUDY, ""),
    "calibration.json": build_calibration,
    "analytic.json": build_textures,
    "risks.json": build_risks,
    "audit.json": build_audit,
    "pair.json": build_pair,
    "certificate.json": build_certificate,
}
"""By what is written: a record of it. A run's is a fixture."""

PAGES = {"results.json": "report.html", "analytic.json": "textures.html", "pair.json": AUDIT_PAGE}
"""Which pages have not their record's name."""


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data frames as what they are made of."""
    pandas: Any = ModuleType("pandas")
    pandas.DataFrame = dict
    monkeypatch.setitem(sys.modules, "pandas", pandas)


API = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def kinds(of: type[Header]) -> set[type[Header]]:
    return {of}.union(*(kinds(each) for each in of.__subclasses__())) - {Header}


def test_every_kind_of_record_is_one_that_opens() -> None:
    assert kinds(Header) == set(WRITTEN.values()) and {"results.json", *OTHERS} == set(WRITTEN)


def test_the_documentation_lists_them_with_their_pages() -> None:
    listed = dict(re.findall(r"^\| `.+?\| `(\S+\.json)` \| `(\S+\.html)` \|", API.read_text(), re.MULTILINE))
    assert {file.replace("<set>", "*") for file in listed} == set(WRITTEN)
    assert {file: page for file, page in listed.items() if page != file.replace(".json", ".html")} == PAGES


@pytest.mark.usefixtures("frames")
@pytest.mark.parametrize("pattern", WRITTEN)
def test_what_opens_has_a_line_a_frame_and_a_page(pattern: str, record: RunRecord, tmp_path: Path) -> None:
    given = OTHERS[pattern]() if pattern in OTHERS else record
    file = tmp_path / "out" / pattern.replace("*", "set")
    write_record(file, given)
    page = file.with_name(PAGES.get(pattern, f"{file.stem}.html"))
    page.write_text("<p>ä</p>", encoding="utf-8")
    opened = shadow_defense.open_results(tmp_path / "out")
    assert given.title in repr(opened) and given.created in repr(opened) and str(page) in repr(opened)
    frame, table = opened.to_frame(), numbers(given)
    assert frame == {column.title: [column.read(row) for row in table.rows] for column in table.columns}
    assert len(frame) == len(table.columns) and all(len(values) == len(table.rows) > 0 for values in frame.values())
    saved = opened.save_page(tmp_path / "elsewhere" / "page.html")
    assert saved.read_text(encoding="utf-8") == "<p>ä</p>"
    page.unlink()
    with pytest.raises(RunError, match=r"cannot be read: write it again with `.+`"):
        opened.save_page(tmp_path / "again.html")


def test_textures_as_numbers_have_the_clean_images_and_every_strength() -> None:
    assert numbers(build_textures()).csv().splitlines() == [
        "preset,strength,weakest,on_front,psnr,rdlv,linkage,f1,f1_threshold,auc",
        "clean images,0.0,False,False,,,,0.9,0.9,0.95",
        "white,0.5,True,False,1.5,0.25,0.02,0.7,,0.8",
        "covariance,1.0,True,True,1.5,0.25,0.02,0.7,,0.8",
    ]


def test_a_pair_as_numbers_has_the_rows_of_both() -> None:
    lines = numbers(build_pair()).csv().splitlines()
    assert [line.split(",")[:5] for line in lines] == [
        ["arm", "attack", "verdict", "cosine", "reconstruction"],
        ["No defense", "dlg", "not rebuilt", "0.75", "0"],
        ["No defense", "dlg", "not rebuilt", "0.75", "1"],
        ["Protect once", "r-gap", "not known", "0.0", ""],
    ]


def test_textures_write_what_opens(tmp_path: Path) -> None:
    write_textures(tmp_path, build_textures())
    opened = shadow_defense.open_results(tmp_path)
    assert opened.record == build_textures() and opened.page.exists()


def test_a_pairs_record_is_not_taken_for_an_audits(tmp_path: Path) -> None:
    write_record(tmp_path / PAIR, build_pair())
    assert shadow_defense.open_results(tmp_path).record == build_pair()
