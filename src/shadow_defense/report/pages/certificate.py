"""The page of a certificate: what was protected, what the best remover makes of it, what that covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.formatting import METRICS, RELATIVE_LEAKAGE, Metric
from shadow_defense.report.kit.pictures import Picture, display_width, image_uri
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.certificate import CertificateRecord, Example, Numbers
from shadow_defense.report.sentences.certificate import COVERED, NOT_COVERED

SHOWN: dict[str, Metric] = {**METRICS, "rdlv": RELATIVE_LEAKAGE}


@dataclass(frozen=True)
class Row:
    """A remover or what it is held against."""

    name: str
    numbers: Numbers


def render_certificate(record: CertificateRecord, example: Example) -> str:
    """The whole page as one HTML document; the picture is of a public image.

    Raises:
        DataError: when images have neither one nor three channels.
    """
    width, pixelated = display_width(example.clean.shape[2])
    titles = {
        "clean": ("Public image", "not a patient of this set"),
        "protected": ("Protected", "with draws of nobody's"),
        "removed": ("Linear removal", "what an attacker makes of it"),
        "mean": ("Mean image", "what anybody has"),
    }
    return render_page(
        "certificate",
        record,
        seeds=(record.seed,),
        pictures=[
            Picture(image_uri(getattr(example, name)), title, title, (line,)) for name, (title, line) in titles.items()
        ],
        width=width,
        pixelated=pixelated,
        table=_scores(record),
        metrics=list(SHOWN.values()),
        covered=COVERED,
        not_covered=NOT_COVERED,
    )


def _scores(record: CertificateRecord) -> Table[Row]:
    rows = [Row(name, numbers) for name, numbers in record.removers.items()]
    rows += [
        Row(name, numbers)
        for name, numbers in (
            ("Believed without the truth", record.worst),
            ("Closest in hindsight", record.hindsight),
            ("Mean image", record.mean_image),
            ("Floor of linear removers", record.floor),
        )
        if numbers
    ]
    measured = [name for name in SHOWN if any(name in row.numbers for row in rows)]
    columns: tuple[Column[Row], ...] = (
        Column("Remover", lambda row: row.name),
        *(Column(SHOWN[name].label, _reader(name), SHOWN[name].digits) for name in measured),
    )
    return Table("What removers make of the protected images", columns, rows)


def _reader(name: str) -> Callable[[Row], Estimate | None]:
    return lambda row: row.numbers.get(name)
