"""The page of two updates side by side: the same client and round under two defenses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shadow_defense.metrics.recognition import RULE
from shadow_defense.report.kit.formatting import number
from shadow_defense.report.kit.pictures import picture
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.pages.run_pictures import THUMBNAIL, Tile
from shadow_defense.report.records.audit import AuditPair, AuditPictures, AuditRecord

MOST_ROWS = 32
"""Images that are drawn."""


def render_pair(record: AuditPair, pictures: Mapping[str, AuditPictures]) -> str:
    """The whole page as one HTML document.

    Args:
        pictures: by the arm's title, as ``record.audits``.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    truths = next(iter(pictures.values())).truths
    rows = [] if truths is None else [_row(record, pictures, place) for place in range(min(len(truths), MOST_ROWS))]
    return render_page("audit_pair", record, seeds=(record.seed,), sheet=rows, table=_table(record), rule=RULE)


def _row(record: AuditPair, pictures: Mapping[str, AuditPictures], image: int) -> list[Tile | None]:
    truths = next(iter(pictures.values())).truths
    assert truths is not None
    described = f"Image {image + 1} of the client"
    original = Tile(picture(truths[image], "", described, least=THUMBNAIL))
    return [original, *(_tile(title, audit, pictures[title], image) for title, audit in record.audits.items())]


def _tile(title: str, audit: AuditRecord, pictures: AuditPictures, image: int) -> Tile | None:
    """The closest that any attack came to an image."""
    found = [
        (row.share, name, row)
        for name, end in audit.attacks.items()
        for row in end.rows
        if row.image == image and row.share is not None
    ]
    if not found:
        return None
    _, name, row = max(found, key=lambda each: each[0])
    drawn = pictures.reconstructions[name][row.reconstruction]
    described = f"Image {image + 1} rebuilt with {title}"
    lines = (f"by {name}", f"SSIM {number(row.ssim, 2)}")
    return Tile(picture(drawn, "", described, *lines, least=THUMBNAIL), row.recognition)


def _table(record: AuditPair) -> Table[str]:
    def ended(title: str) -> Column[str]:
        return Column(title, _reader(record.audits[title]))

    names = list(next(iter(record.audits.values())).attacks)
    columns = (Column[str]("Attack", lambda name: name), *(ended(title) for title in record.audits))
    return Table("How each attack ended", columns, names, kind="words")


def _reader(audit: AuditRecord) -> Callable[[str], str]:
    def read(name: str) -> str:
        end = audit.attacks[name]
        best = end.best
        numbers = "" if best is None else f", SSIM {number(best.ssim, 2)}, PSNR {number(best.psnr, 1, 'dB')}"
        return f"{end.verdict}{numbers}"

    return read
