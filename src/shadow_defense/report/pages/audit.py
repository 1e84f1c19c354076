"""The page of an audit: what was rebuilt, how close it is, who the attacker is, and why it worked or failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shadow_defense.files import write_text
from shadow_defense.report.kit.formatting import METRICS, RELATIVE_LEAKAGE, Metric, number
from shadow_defense.report.kit.pictures import image_uri
from shadow_defense.report.kit.template import render_template
from shadow_defense.report.pages.run_pictures import display_width

MOST_SHOWN = 32
"""Reconstructions of each attack that are drawn; all are in the tensors beside the page."""

RISKS: dict[str, Metric] = {
    **METRICS,
    "rdlv": RELATIVE_LEAKAGE,
    "iip": Metric(
        "IIP",
        "",
        0,
        True,
        "Image identifiability: 1 where the gallery image nearest to the reconstruction, by the model's own features, "
        "is one of the client's. k-IIP is the mean number of the client's among the k nearest, from 0 to k.",
    ),
}

GROUPS = {
    "hides": "What hides the images",
    "gives away": "What gives them away",
    "limits the attack": "What limits this attack, and protects from no better one",
    "not known": "What is not known",
}
"""The effects of :mod:`shadow_defense.experiment.audit.diagnosis`, in the order of the page."""


@dataclass(frozen=True)
class AuditPictures:
    """The images behind an audit, in [0, 1]: reconstructions by attack, the client's own, and the template."""

    reconstructions: Mapping[str, Float[Tensor, "n c h w"]]
    truths: Float[Tensor, "m c h w"] | None
    template: Float[Tensor, "c h w"] | None


@dataclass(frozen=True)
class Picture:
    """One picture: its data URI, heading, what is written below it, and the words that stand for it."""

    uri: str
    title: str
    lines: tuple[str, ...]
    alt: str


@dataclass(frozen=True)
class Section:
    """One attack as it is laid out: each card is a reconstruction beside its image."""

    name: str
    attack: Mapping[str, Any]
    cards: tuple[tuple[Picture, ...], ...]
    left_out: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render_audit_page(results: Mapping[str, Any], pictures: AuditPictures) -> str:
    """The whole page as one HTML document; ``results`` is what ``audit.json`` holds. All text is escaped.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    width, pixelated = display_width(results["image_shape"][2])
    diagnosis = {
        heading: [reason["sentence"] for reason in results["diagnosis"] if reason["effect"] == effect]
        for effect, heading in GROUPS.items()
    }
    context = {
        "record": results,
        "seeds": [results["seed"]],
        "sections": [_section(name, attack, pictures) for name, attack in results["attacks"].items()],
        "template": None if pictures.template is None else image_uri(pictures.template),
        "width": width,
        "pixelated": pixelated,
        "diagnosis": {heading: sentences for heading, sentences in diagnosis.items() if sentences},
        "threat_models": _threat_models(results["threat_models"]),
        "metrics": [RISKS[name] for name in _measured(results)],
    }
    return render_template("pages/audit.html.j2", context)


def write_audit_page(path: Path, results: Mapping[str, Any], pictures: AuditPictures) -> None:
    """Write :func:`render_audit_page` to ``path``, whole or not at all."""
    write_text(path, render_audit_page(results, pictures))


def _measured(results: Mapping[str, Any]) -> list[str]:
    rows = [row for attack in results["attacks"].values() for row in attack["rows"]]
    return [name for name in RISKS if any(row.get(name) is not None for row in rows)]


def _section(name: str, attack: Mapping[str, Any], pictures: AuditPictures) -> Section:
    found = pictures.reconstructions.get(name)
    measured = _measured({"attacks": {name: attack}})
    cards: list[tuple[Picture, ...]] = []
    for index, image in enumerate([] if found is None else found[:MOST_SHOWN]):
        row = attack["rows"][index] if attack["rows"] else None
        lines = () if row is None else tuple(_value(key, row) for key in measured)
        card = [Picture(image_uri(image), f"Rebuilt {index + 1}", lines, f"Rebuilt {index + 1} by {name}")]
        if row is not None and row["image"] is not None and pictures.truths is not None:
            own = f"Image {row['image'] + 1}"
            card.insert(
                0, Picture(image_uri(pictures.truths[row["image"]]), own, ("the client's own",), f"{own} of the client")
            )
        cards.append(tuple(card))
    return Section(
        name,
        attack,
        tuple(cards),
        0 if found is None else max(len(found) - MOST_SHOWN, 0),
        tuple(_heading(key) for key in measured),
        tuple(
            (
                f"Rebuilt {row['reconstruction'] + 1}",
                "none left" if row["image"] is None else f"{row['image'] + 1}",
                *(number(row.get(key), RISKS[key].digits) for key in measured),
            )
            for row in attack["rows"]
        ),
    )


def _threat_models(texts: Mapping[str, str]) -> dict[str, str]:
    """Each threat model in words under the names of all attacks that have it."""
    return {
        ", ".join(name for name, other in texts.items() if other == text): text
        for text in dict.fromkeys(texts.values())
    }


def _heading(metric: str) -> str:
    shown = RISKS[metric]
    return f"{shown.label}, {shown.unit}" if shown.unit else shown.label


def _value(metric: str, row: Mapping[str, Any]) -> str:
    shown = RISKS[metric]
    return f"{shown.label} {number(row.get(metric), shown.digits, shown.unit)}"
