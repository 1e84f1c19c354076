"""The page of an audit: what was rebuilt, how close it is, who the attacker is, and why it worked or failed;
and of two updates side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.recognition import RULE
from shadow_defense.report.kit.formatting import number
from shadow_defense.report.kit.metrics import METRICS
from shadow_defense.report.kit.pictures import Picture, picture
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.pages.run_pictures import THUMBNAIL, Tile
from shadow_defense.report.records.audit import AttackEnd, AuditPair, AuditPictures, AuditRecord, RiskRow
from shadow_defense.report.sentences.audit_assessment import NOT_COVERED, OFFICER, RULES

MOST_SHOWN = 32
"""Reconstructions of each attack, or of a pair images, that are drawn; all are in the tensors beside the page."""

GROUPS = {
    "hides": "What hides the images",
    "gives away": "What gives them away",
    "limits the attack": "What limits this attack, and protects from no better one",
    "not known": "What is not known",
}
"""What each effect of a reason is called, in the order of the page."""


@dataclass(frozen=True)
class Section:
    """One attack as it is laid out: each card is a reconstruction beside its image."""

    name: str
    attack: AttackEnd
    cards: tuple[tuple[Picture, ...], ...]
    left_out: int
    table: Table[RiskRow]


def render_audit(record: AuditRecord, pictures: AuditPictures) -> str:
    """The whole page as one HTML document.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    diagnosis = {
        heading: [reason.sentence for reason in record.diagnosis if reason.effect == effect]
        for effect, heading in GROUPS.items()
    }
    return render_page(
        "audit",
        record,
        seeds=(record.seed,),
        sections=[_section(name, attack, pictures) for name, attack in record.attacks.items()],
        diagnosis={heading: sentences for heading, sentences in diagnosis.items() if sentences},
        facts=asdict(record.facts),
        threat_models=_threat_models(record.threat_models),
        rules=RULES,
        recognition=RULE,
        not_covered=NOT_COVERED,
        officer=OFFICER,
        metrics=[METRICS[name] for name in _measured([row for each in record.attacks.values() for row in each.rows])],
    )


def _measured(rows: Sequence[RiskRow]) -> list[str]:
    return [name for name in METRICS if any(getattr(row, name, None) is not None for row in rows)]


def _section(name: str, attack: AttackEnd, pictures: AuditPictures) -> Section:
    found = pictures.reconstructions.get(name)
    measured = _measured(attack.rows)
    shown = () if found is None else found[:MOST_SHOWN]
    rows = attack.rows or (None,) * len(shown)
    cards = [
        _card(name, index, image, row, measured, pictures.truths)
        for index, (image, row) in enumerate(zip(shown, rows, strict=False))
    ]
    if cards and pictures.mean_image is not None:
        mean_image = picture(pictures.mean_image, "Mean image", "Mean of public images", "known without any update")
        cards.insert(0, (mean_image,))
    columns: tuple[Column[RiskRow], ...] = (
        Column("Reconstruction", lambda row: f"Rebuilt {row.reconstruction + 1}"),
        Column("Image", lambda row: "none left" if row.image is None else str(row.image + 1)),
        *(_column(metric) for metric in measured),
    )
    table = Table(f"Risk of each image, {name}", columns, attack.rows)
    return Section(name, attack, tuple(cards), 0 if found is None else max(len(found) - MOST_SHOWN, 0), table)


def _card(
    name: str,
    index: int,
    image: Float[Tensor, "c h w"],
    row: RiskRow | None,
    measured: Sequence[str],
    truths: Float[Tensor, "m c h w"] | None,
) -> tuple[Picture, ...]:
    lines = () if row is None else (_line(metric, row) for metric in measured)
    rebuilt = picture(image, f"Rebuilt {index + 1}", f"Rebuilt {index + 1} by {name}", *lines)
    if row is None or row.image is None or truths is None:
        return (rebuilt,)
    own = f"Image {row.image + 1}"
    return picture(truths[row.image], own, f"{own} of the client", "the client's own"), rebuilt


def _column(metric: str) -> Column[RiskRow]:
    return Column(METRICS[metric].title, lambda row: getattr(row, metric), METRICS[metric].digits)


def _line(metric: str, row: RiskRow) -> str:
    shown = METRICS[metric]
    return f"{shown.label} {number(getattr(row, metric), shown.digits, shown.unit)}"


def _threat_models(texts: Mapping[str, str]) -> dict[str, str]:
    """Each threat model in words under the names of all attacks that have it."""
    return {
        ", ".join(name for name, other in texts.items() if other == text): text
        for text in dict.fromkeys(texts.values())
    }


def render_pair(record: AuditPair, pictures: Mapping[str, AuditPictures]) -> str:
    """The whole page as one HTML document.

    Args:
        pictures: by the arm's title, as ``record.audits``.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    truths = next(iter(pictures.values())).truths
    rows = [] if truths is None else [_row(record, pictures, place) for place in range(min(len(truths), MOST_SHOWN))]
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
