"""A small record of each kind that is written and has no builder of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.report.sentences.test_audit_sentences import CLEAN

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.limit import Limit
from shadow_defense.report.records.audit import Assessment, AttackEnd, AuditPair, AuditRecord, RiskRow
from shadow_defense.report.records.calibration import CalibrationRecord, Crossing, Leakage, ScheduleEntry, Strength
from shadow_defense.report.records.certificate import CertificateRecord, Counts
from shadow_defense.report.records.risks import Finding, RiskEntry, RisksRecord
from shadow_defense.report.records.scores import Data
from shadow_defense.report.records.textures import TextureRow, TexturesRecord

HEADER: dict[str, Any] = {
    "title": "A title",
    "created": "2026-11-23",
    "command": "shadow-defense --version",
    "versions": {"torch": "2"},
}

MEASURED = Estimate(0.5, (0.25, 0.75), 4)


def build_audit(*rows: RiskRow) -> AuditRecord:
    """An audit by one attack, of scored reconstructions where there are such."""
    return AuditRecord(
        **HEADER,
        seed=0,
        subject={},
        model={},
        image_shape=(1, 16, 16),
        local_training=None,
        threat_models={"dlg": "informed server: a."},
        attack_settings={},
        facts=CLEAN,
        attacks={"dlg": AttackEnd(sentences=("It failed.",), verdict="not rebuilt", rows=rows, distance=0.25)},
        diagnosis=(),
        assessment=Assessment("amber", "Something of image 2 shows.", ("Look again.",), {"ggl": "another attack"}),
        notes=("Nothing else was given.",),
        verdict=("It failed.",),
    )


def build_pair() -> AuditPair:
    """One arm whose attack scored two images, and one of another attack that was refused."""
    scored = build_audit(RiskRow(reconstruction=0, image=1, psnr=20.0), RiskRow(reconstruction=1, image=0, psnr=8.0))
    refused = replace(build_audit(), attacks={"r-gap": AttackEnd(sentences=("r-gap was refused.",))})
    return AuditPair(**HEADER, seed=0, audits={"No defense": scored, "Protect once": refused}, verdict=())


def build_calibration() -> CalibrationRecord:
    """One schedule of two strengths."""
    weak, strong = (
        Strength(
            strength=strength,
            mean_amplitude=strength,
            leakage={"ssim": Leakage(0.5 - strength / 10, 0.2, 0.6, 1, 4)},
            f1=(0.8, 0.9),
            f1_difference=MEASURED,
            seconds=1.0,
        )
        for strength in (0.0, 2.0)
    )
    schedule = ScheduleEntry(
        outcome="found",
        certain=Crossing(0.0, 2.0),
        average=Crossing(0.0, 2.0),
        leaks=0.0,
        rises=(),
        held_earlier=(),
        measurements=(weak, strong),
    )
    return CalibrationRecord(
        **HEADER,
        seeds=(0, 1),
        data=Data(name="faces", image_size=(16, 16), channels=1, clients={}, public=1, test=1, sha256=""),
        config={},
        settings={},
        target=Limit("ssim", 0.4),
        attack="ig",
        attack_settings={},
        threat_model="",
        mean_image=weak.leakage,
        undefended=weak,
        schedules={"constant": schedule},
        chosen=None,
        seconds=1.0,
    )


def build_textures() -> TexturesRecord:
    """Two textures, of which one lies on the front."""
    worth = {"f1": 0.7, "f1_threshold": None, "auc": 0.8}
    leaks = {"psnr": 1.5, "rdlv": 0.25, "linkage": 0.02}
    return TexturesRecord(
        **HEADER,
        seed=0,
        target="psnr=1.5",
        trained=40,
        public=60,
        clean={"f1": 0.9, "f1_threshold": 0.9, "auc": 0.95},
        rows=tuple(
            TextureRow(preset=preset, strength=strength, weakest=True, leaks=leaks, worth=worth, on_front=front)
            for preset, strength, front in (("white", 0.5, False), ("covariance", 1.0, True))
        ),
        not_reached={},
    )


def build_risks() -> RisksRecord:
    """One risk."""
    entry = RiskEntry(
        number=1,
        name="rounds",
        claim="c",
        experiment="e",
        finding=Finding(value=MEASURED, rows=()),
        outcome="supported",
        sentence="s",
    )
    return RisksRecord(**HEADER, seeds=(0,), config={}, risks=(entry,))


def build_certificate() -> CertificateRecord:
    """A remover that leaves what the best leaves."""
    table = {"psnr": MEASURED, "ssim": MEASURED}
    return CertificateRecord(
        **HEADER,
        seed=0,
        verdict=("A sentence.",),
        settings={"texture": "white"},
        target=None,
        counts=Counts(protected=8, audited=4, public=6, spent=0, passed=0),
        removal_written=False,
        hashes={},
        planted_breaks={"replayed": True},
        removers={"lmmse": table},
        worst=table,
        hindsight=table,
        mean_image=table,
        linkage={"rank1": MEASURED},
        floor={},
    )
