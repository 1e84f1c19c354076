"""A certificate as Python programs hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shadow_defense.experiment.protecting.certifying import as_json, write_certificate
from shadow_defense.experiment.protecting.folder import PAGE
from shadow_defense.files import write_text
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.numbers import numbers
from shadow_defense.report.pages.certificate import render_certificate
from shadow_defense.report.records.certificate import CertificateRecord, Example


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
