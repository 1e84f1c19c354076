"""The page of an audit: what was rebuilt, how close it is, who the attacker is, and why it worked or failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.recognition import RULE
from shadow_defense.report.kit.formatting import number
from shadow_defense.report.kit.metrics import METRICS
from shadow_defense.report.kit.pictures import Picture, picture
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.audit import AttackEnd, AuditPictures, AuditRecord, RiskRow
from shadow_defense.report.sentences.audit_assessment import NOT_COVERED, OFFICER, RULES

MOST_SHOWN = 32
"""Reconstructions of each attack that are drawn; all are in the tensors beside the page."""

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
