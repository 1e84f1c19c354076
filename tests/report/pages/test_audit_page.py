"""The page of an audit sets each reconstruction beside its image, and says who attacked."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from tests.report.each_record import HEADER, build_audit
from tests.report.html_page import Page

from shadow_defense.report.kit.pictures import picture
from shadow_defense.report.pages.audit import render_audit, render_pair
from shadow_defense.report.records.audit import (
    AttackEnd,
    AuditPair,
    AuditPictures,
    AuditRecord,
    RiskRow,
)
from shadow_defense.report.sentences.audit_assessment import NOT_COVERED


def row(index: int, image: int | None) -> RiskRow:
    return RiskRow(reconstruction=index, image=image, psnr=10.0 + index, ssim=0.5)


@pytest.fixture
def record() -> AuditRecord:
    rows = (row(0, 1), row(1, 0), row(2, None))
    return replace(
        build_audit(),
        title="Audit of <client>",
        threat_models={
            "dlg": "informed server: a.\nIt sees b.",
            "r-gap": "eavesdropper: c.",
            "rog": "informed server: a.\nIt sees b.",
        },
        attacks={name: AttackEnd(sentences=("It failed.",), rows=rows if name == "dlg" else ()) for name in _ATTACKS},
    )


_ATTACKS = ("dlg", "r-gap", "rog")


def grey(count: int) -> torch.Tensor:
    return torch.full((count, 1, 16, 16), 0.5)


def test_a_reconstruction_stays_beside_the_image_it_is_matched_to(record: AuditRecord) -> None:
    page = render_audit(record, AuditPictures({"dlg": grey(3)}, grey(2), grey(1)[0]))
    Page(page).check()
    pairs = [re.findall(r'alt="([^"]*)"', pair) for pair in re.findall(r'<div class="pair">(.*?)</div>', page, re.S)]
    assert pairs == [["Image 2 of the client", "Rebuilt 1 by dlg"], ["Image 1 of the client", "Rebuilt 2 by dlg"]]
    assert re.findall(r'alt="([^"]*)"', page)[-1] == "Rebuilt 3 by dlg"
    assert "Audit of &lt;client&gt;" in page


def test_without_the_clients_images_reconstructions_stand_alone(record: AuditRecord) -> None:
    page = render_audit(record, AuditPictures({"dlg": grey(3)}, None, None))
    assert '<div class="pair">' not in page
    assert re.findall(r'alt="([^"]*)"', page) == [f"Rebuilt {number} by dlg" for number in (1, 2, 3)]


def test_attacks_with_one_threat_model_share_its_words(record: AuditRecord) -> None:
    page = render_audit(record, AuditPictures({}, None, None))
    assert page.count("informed server: a.\nIt sees b.") == 1
    attackers = page[page.index('id="attacker"') : page.index('id="covered"')]
    assert re.findall("<h3>(.*?)</h3>", attackers) == ["dlg, rog", "r-gap", "What the audit was given"]


def test_it_says_what_follows_what_was_not_tried_and_what_is_not_covered(record: AuditRecord) -> None:
    shown = Page(render_audit(record, AuditPictures({}, None, None))).shown()
    for text in ("Amber", "Something of image 2 shows.", "Look again.", "not tried: another attack", *NOT_COVERED):
        assert text in shown


def test_two_updates_stand_side_by_side(record: AuditRecord) -> None:
    """Each image in a row, under each arm the closest that any attack came to it."""
    closer = replace(record.attacks["dlg"], rows=(RiskRow(reconstruction=1, image=0, psnr=20.0, ssim=0.9),))
    other = replace(
        record, attacks={**record.attacks, "r-gap": closer}, assessment=replace(record.assessment, status="red")
    )
    pair = AuditPair(
        **{**HEADER, "title": "Side <by> side"},
        seed=0,
        audits={"No defense": record, "Protect <once>": other},
        verdict=(),
    )
    light = torch.full((3, 1, 16, 16), 0.9)
    pictures = {
        "No defense": AuditPictures({"dlg": grey(3)}, grey(2), None),
        "Protect <once>": AuditPictures({"dlg": grey(3), "r-gap": light}, grey(2), None),
    }
    page = Page(render_pair(pair, pictures))
    page.check()
    first = page.named("img")[:3]
    assert [image["src"] for image in first] == [picture(each, "", "").source for each in (*grey(2), light[0])]
    assert "by r-gap" in page.shown() and "Red" in page.shown()
