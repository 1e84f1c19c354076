"""The certificate of a protection: from what was protected and what the audit found, and as Python programs hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.experiment.described import made
from shadow_defense.experiment.protecting.folder import CERTIFICATE, PAGE
from shadow_defense.experiment.protecting.material import Material
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.files import write_json, write_text
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.limit import Limit
from shadow_defense.protection.constants import hash_of
from shadow_defense.protection.texture import Texture
from shadow_defense.report.numbers import numbers
from shadow_defense.report.pages.certificate import render_certificate
from shadow_defense.report.records.certificate import Audited, CertificateRecord, Counts, Example
from shadow_defense.report.records.reading import record_values
from shadow_defense.report.sentences.certificate import certificate_verdict

TABLES = ("worst", "hindsight", "mean_image", "linkage", "floor")


@dataclass(frozen=True)
class Origin:
    """What a certificate says of its making.

    Attributes:
        title: what was protected.
        command: by which it was.
        targets: of the strength; none where the settings give it.
        passed: images of other parts.
        marks: hashes, by name: of the texture, where anybody knows it, and of networks that were given.
        notes: what else has to be known.
    """

    title: str
    command: str
    targets: Sequence[Limit]
    passed: int
    marks: Mapping[str, str | None]
    notes: tuple[str, ...] = ()


def certificate_of(
    material: Material, settings: ProtectSettings, audited: Audited, origin: Origin, *, mapped: bool
) -> CertificateRecord:
    """The record; ``mapped``: the texture's map stands before the model."""
    return CertificateRecord(
        **vars(made(origin.title, origin.command)),
        seed=settings.seed,
        verdict=certificate_verdict(audited.planted_breaks, audited.worst, audited.mean_image, audited.linkage),
        settings=settings.model_dump(mode="json"),
        target=", ".join(map(str, origin.targets)) or None,
        counts=Counts(
            protected=len(material.private),
            audited=min(settings.audited, len(material.private)),
            public=len(material.public.images),
            spent=material.spent,
            passed=origin.passed,
        ),
        removal_written=mapped,
        hashes={
            "private": hash_of(material.private.images, material.private.labels),
            "public": hash_of(material.public.images, material.public.labels),
        }
        | {name: mark for name, mark in origin.marks.items() if mark is not None},
        **{**vars(audited), "notes": (*origin.notes, *audited.notes, *_of_a_trial(material))},
    )


def _of_a_trial(material: Material) -> tuple[str, ...]:
    if len(material.private) == material.whole:
        return ()
    return (
        f"A trial: {len(material.private)} of {material.whole} images were protected, as they will be with the rest. "
        "Among so few more are found again than among all.",
    )


def write_certificate(folder: Path, record: CertificateRecord, example: Example | None) -> dict[str, Any]:
    """Write page and record into a folder; returns the record as it is written."""
    # The page first: where the record is, all of it is there.
    write_text(folder / PAGE, render_certificate(record, example))
    written = as_json(record)
    write_json(folder / CERTIFICATE, written)
    return written


def as_json(record: CertificateRecord) -> dict[str, Any]:
    """The record as it is written: each number as mean, low, high and count; null for what is withheld."""
    written = record_values(record)
    written |= {name: written[name] or None for name in TABLES}
    linkage = written["linkage"]
    if isinstance(linkage, dict):
        # A reader finds the key whether or not patients were known.
        linkage.setdefault("patient_auc", None)
    return written


def example_of(texture: Texture, knowledge: Knowledge, seed: int) -> Example:
    """The first public image that was held back: clean, protected, and what the linear remover makes of it."""
    _, held = knowledge.parts()
    clean = held.images[:1]
    protected = texture.protect(clean, drawn(seed, "example", 1))
    removed = LinearRemover(texture.whitening, texture.view()).remove(protected, torch.zeros(1).long()).estimates
    mean = texture.whitening.mean.unflatten(0, texture.whitening.shape)
    return Example(clean[0], protected[0].clamp(0, 1), removed[0], mean)


@dataclass(frozen=True, repr=False)
class Certificate:
    """What the best remover makes of protected images.

    Attributes:
        record: all of it.
        transform: what goes before the model at test time, on images in [0, 1]; the identity where nothing has to.
    """

    record: CertificateRecord
    transform: nn.Module
    example: Example

    @property
    def verdict(self) -> tuple[str, ...]:
        """In words."""
        return self.record.verdict

    @property
    def withheld(self) -> bool:
        """Whether a planted break was not broken, so that nothing follows."""
        return self.record.withheld

    @property
    def worst(self) -> Mapping[str, Estimate]:
        """Of the best remover, by metric; empty where withheld."""
        return self.record.worst

    @property
    def linkage(self) -> Mapping[str, Estimate]:
        """``rank1`` and ``auc`` of finding an image again; empty where withheld."""
        return self.record.linkage

    def as_dict(self) -> dict[str, Any]:
        """As ``certificate.json`` holds it."""
        return as_json(self.record)

    def to_frame(self) -> Any:
        """A pandas data frame with a row for each remover's metric. Raises :class:`ConfigError` without pandas."""
        return numbers(self.record).to_frame()

    def save_page(self, path: str | Path = PAGE) -> Path:
        """Write the page, one file that loads nothing."""
        write_text(Path(path), render_certificate(self.record, self.example))
        return Path(path)

    def save(self, folder: str | Path) -> None:
        """Write ``certificate.json`` and ``certificate.html`` into a folder."""
        write_certificate(Path(folder), self.record, self.example)

    def __repr__(self) -> str:
        if self.withheld:
            return "Certificate(withheld: a planted break was not broken)"
        counts, mean = self.record.counts, self.record.mean_image
        return (
            f"Certificate(best remover {self.worst['psnr'].mean:.1f} dB, mean image {mean['psnr'].mean:.1f} dB, found "
            f"again {self.linkage['rank1'].mean:.1%}; {counts.audited} of {counts.protected} images)"
        )
