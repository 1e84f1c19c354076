"""The page of a certificate: what was protected, what the best remover makes of it, what that covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.metrics import METRICS
from shadow_defense.report.kit.pictures import picture
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.certificate import CertificateRecord, Example, Numbers
from shadow_defense.report.sentences.certificate import COVERED, NOT_COVERED

Named = tuple[str, Numbers]
"""A remover, or what it is held against, with its numbers."""


def render_certificate(record: CertificateRecord, example: Example | None) -> str:
    """The whole page as one HTML document; its pictures, where it has any, are of a public image.

    Raises:
        DataError: when images have neither one nor three channels.
    """
    table = _scores(record)
    return render_page(
        "certificate",
        record,
        seeds=(record.seed,),
        pictures=[]
        if example is None
        else [
            picture(example.clean, "Public image", "Public image", "not a patient of this set"),
            picture(example.protected, "Protected", "Protected", "with draws of nobody's"),
            picture(example.removed, "Linear removal", "Linear removal", "what an attacker makes of it"),
            picture(example.mean, "Mean image", "Mean image", "what anybody has"),
        ],
        table=table,
        metrics=[METRICS[name] for name in _measured(table.rows)],
        covered=COVERED,
        not_covered=NOT_COVERED,
    )


def _scores(record: CertificateRecord) -> Table[Named]:
    against = {
        "Believed without the truth": record.worst,
        "Closest in hindsight": record.hindsight,
        "Mean image": record.mean_image,
        "Bound of linear removers": record.floor,
    }
    rows = [*record.removers.items(), *((name, numbers) for name, numbers in against.items() if numbers)]
    columns: tuple[Column[Named], ...] = (
        Column("Remover", lambda row: row[0]),
        *(Column(METRICS[name].title, _reader(name), METRICS[name].digits) for name in _measured(rows)),
    )
    return Table("What removers make of the protected images", columns, rows)


def _measured(rows: Sequence[Named]) -> list[str]:
    return [name for name in METRICS if any(name in numbers for _, numbers in rows)]


def _reader(name: str) -> Callable[[Named], Estimate | None]:
    return lambda row: row[1].get(name)
