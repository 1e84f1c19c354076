"""The page of an audit sets each reconstruction beside its image, and says who attacked."""

from __future__ import annotations

import re

import pytest
import torch
from tests.report.html_page import Page
from tests.report.sentences.test_audit_sentences import CLEAN

from shadow_defense.report.pages.audit import render_audit
from shadow_defense.report.records.audit import AttackEnd, AuditPictures, AuditRecord, RiskRow


def row(index: int, image: int | None) -> RiskRow:
    return RiskRow(reconstruction=index, image=image, psnr=10.0 + index, ssim=0.5)


@pytest.fixture
def record() -> AuditRecord:
    rows = (row(0, 1), row(1, 0), row(2, None))
    return AuditRecord(
        title="Audit of <client>",
        created="2026-11-23",
        command="shadow-defense audit run",
        seed=0,
        versions={"torch": "2"},
        subject={},
        model={},
        image_shape=(1, 16, 16),
        local_training=None,
        threat_models={
            "dlg": "informed server: a.\nIt sees b.",
            "r-gap": "eavesdropper: c.",
            "rog": "informed server: a.\nIt sees b.",
        },
        attack_settings={},
        facts=CLEAN,
        attacks={name: AttackEnd(sentences=("It failed.",), rows=rows if name == "dlg" else ()) for name in _ATTACKS},
        diagnosis=(),
        notes=("Nothing else was given.",),
        verdict=("It failed.",),
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
    attackers = page[page.index('id="attacker"') : page.index('id="setup"')]
    assert re.findall("<h3>(.*?)</h3>", attackers) == ["dlg, rog", "r-gap", "What the audit was given"]
