"""The report of a comparison: one HTML file that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow_defense.files import write_text
from shadow_defense.report.comparison_content import BASELINES, ComparisonContent, ComparisonPictures
from shadow_defense.report.kit.formatting import METRICS, better_when, metric_and_region, metric_named
from shadow_defense.report.kit.pictures import image_uri
from shadow_defense.report.kit.plane import plane_svg
from shadow_defense.report.kit.template import render_template
from shadow_defense.report.pages.compare_tables import (
    ComparisonTable,
    foreground_table,
    front_of,
    leakage_table,
    when,
    worth_table,
)
from shadow_defense.report.pages.run_pictures import Picture, display_width


@dataclass(frozen=True)
class PlanePanel:
    """One plane with its heading."""

    title: str
    direction: str
    svg: str


@dataclass(frozen=True)
class TablePair:
    """What leaked in one round, or in all of them together: over the whole image, and by region."""

    title: str
    leakage: ComparisonTable
    foreground: ComparisonTable


@dataclass(frozen=True)
class AttackSection:
    """One model under one attack: what all attacked rounds say together comes first."""

    anchor: str
    title: str
    planes: tuple[PlanePanel, ...]
    tables: tuple[TablePair, ...]


@dataclass(frozen=True)
class PicturesCard:
    """One image and what one attack rebuilt of it under each defense."""

    title: str
    line: str
    width: int
    pixelated: bool
    pictures: tuple[Picture, ...]


def render_comparison(content: ComparisonContent) -> str:
    """The whole report as one HTML document with its planes, pictures, tables and style inside.

    All text from ``content`` is escaped; a content security policy in the page forbids loading anything and
    running any script.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    return render_template("pages/compare.html.j2", _context(content))


def write_comparison(path: Path, content: ComparisonContent) -> None:
    """Write :func:`render_comparison` to ``path``, whole or not at all."""
    write_text(path, render_comparison(content))


def _context(content: ComparisonContent) -> dict[str, Any]:
    comparison = content.comparison
    defenses = comparison["defenses"]
    pooled: dict[str, Mapping[str, Any]] = {}
    for table in sorted(comparison["tables"], key=lambda table: table["round"] is not None):
        pooled.setdefault(table["model"], table)
    return {
        "record": comparison,
        "seeds": comparison["seeds"],
        "first": next(iter(defenses), "the first defense"),
        "baselines": BASELINES,
        "metrics": METRICS.values(),
        "sections": _sections(comparison),
        "worth": [worth_table(table) for table in pooled.values()],
        "ablations": [_pair(table, comparison, frozenset()) for table in comparison["ablations"]],
        "cards": _cards(content.pictures),
    }


def _sections(comparison: Mapping[str, Any]) -> list[AttackSection]:
    places = dict.fromkeys(
        (entry["model"], entry["attack"]) for part in ("tables", "planes") for entry in comparison[part]
    )
    sections = []
    for index, (model, attack) in enumerate(places):
        own = [table for table in comparison["tables"] if (table["model"], table["attack"]) == (model, attack)]
        ordered = sorted(own, key=lambda table: table["round"] is not None)
        front = front_of(comparison, model, attack)
        planes = [plane for plane in comparison["planes"] if (plane["model"], plane["attack"]) == (model, attack)]
        sections.append(
            AttackSection(
                f"attack{index}",
                f"{model}, {attack}",
                tuple(_plane(f"plane{index}x{place}", plane, comparison) for place, plane in enumerate(planes)),
                tuple(_pair(table, comparison, front if table["round"] is None else frozenset()) for table in ordered),
            )
        )
    return sections


def _plane(name: str, plane: Mapping[str, Any], comparison: Mapping[str, Any]) -> PlanePanel:
    metric = metric_named(metric_and_region(plane["metric"])[0])
    title = f"{plane['model']}, {plane['attack']}: {metric.label} against macro F1"
    return PlanePanel(title, better_when(metric), plane_svg(name, plane, comparison["defenses"]))


def _pair(table: Mapping[str, Any], comparison: Mapping[str, Any], front: frozenset[str]) -> TablePair:
    title = f"{table['model']}, {table['attack']}: {when(table)}"
    return TablePair(title, leakage_table(table, comparison["defenses"], front), foreground_table(table))


def _cards(pictures: tuple[ComparisonPictures, ...]) -> list[PicturesCard]:
    return [_card(entry) for entry in pictures]


def _card(entry: ComparisonPictures) -> PicturesCard:
    width, pixelated = display_width(entry.original.shape[2])
    what = f"{entry.client}, round {entry.round}: {entry.class_name}"
    original = Picture(image_uri(entry.original), "Original", f"Original image of {what}", ("never leaves the client",))
    rebuilt = (
        Picture(image_uri(image), name, f"What the attack {entry.attack} rebuilt of {what}, with {name}")
        for name, image in entry.rebuilt.items()
    )
    return PicturesCard(what, f"{entry.model}, {entry.attack}", width, pixelated, (original, *rebuilt))
