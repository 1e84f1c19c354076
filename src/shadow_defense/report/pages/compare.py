"""The page of a comparison: privacy against utility, what attackers rebuilt, and every number in tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shadow_defense.report.columns import ATTACK, IMAGES, NUMBERS, ROUND, number_table, score_table
from shadow_defense.report.kit.formatting import METRICS, better_when, metric_and_region, metric_named
from shadow_defense.report.kit.pictures import Picture, display_width, image_uri
from shadow_defense.report.kit.plane import plane_svg
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.comparison import ComparisonPictures, ComparisonRecord, DefenseEntry, Plane
from shadow_defense.report.records.scores import BASELINES, Measurement, Row, ScoreTable


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
    leakage: Table[Row]
    regions: Table[Row]


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


def render_comparison(record: ComparisonRecord, pictures: Sequence[ComparisonPictures] = ()) -> str:
    """The whole page as one HTML document with its planes, pictures, tables and style inside.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    models = dict.fromkeys(table.model for table in record.tables)
    pooled = [next(iter(record.pooled(model)), None) for model in models]
    return render_page(
        "compare",
        record,
        seeds=record.seeds,
        baselines=BASELINES,
        metrics=METRICS.values(),
        sections=_sections(record),
        worth=[
            score_table("worth", table.model, [row for row in table.rows if not row.baseline])
            for table in pooled
            if table is not None
        ],
        ablations=[_pair(table) for table in record.ablations],
        cards=[_card(entry) for entry in pictures],
    )


def comparison_numbers(record: ComparisonRecord) -> Table[Measurement]:
    """Every number of every arm, one a row, for CSV and data frames.

    ``part`` is ``comparison`` or ``ablation``; ``on_front`` is 1 or 0 for what stands on a plane, else empty.
    """
    ablations = {id(table) for table in record.ablations}

    def entry(each: Measurement) -> DefenseEntry | None:
        return record.defenses.get(each.row.arm)

    columns: tuple[Column[Measurement], ...] = (
        Column("part", lambda each: "ablation" if id(each.table) in ablations else "comparison"),
        Column("model", lambda each: each.table.model),
        ATTACK,
        ROUND,
        Column("defense", lambda each: each.row.arm),
        Column("family", lambda each: getattr(entry(each), "family", None)),
        Column("strength", lambda each: getattr(entry(each), "label", None)),
        Column("share_bn", lambda each: each.row.share_bn),
        Column("on_front", lambda each: None if each.row.on_front is None else int(each.row.on_front)),
        IMAGES,
        Column("seeds", lambda each: each.row.seeds),
        Column("kind", lambda each: each.kind),
        Column("measure", lambda each: each.name),
        *NUMBERS,
    )
    return number_table(columns, (*record.tables, *record.ablations))


def comparison_summary(record: ComparisonRecord) -> list[Table[Row]]:
    """For the terminal, for each model and attack: what leaks, macro F1, time, and who is on the front."""
    return [
        score_table("terminal", f"{table.model}, {table.attack}", table.rows)
        for table in record.tables
        if table.round is None
    ]


def when(table: ScoreTable) -> str:
    """Which rounds a table is about."""
    return "all attacked rounds together" if table.round is None else f"round {table.round}"


def _sections(record: ComparisonRecord) -> list[AttackSection]:
    places = dict.fromkeys(
        [*(table.place for table in record.tables), *((plane.model, plane.attack) for plane in record.planes)]
    )
    sections = []
    for index, place in enumerate(places):
        own = [table for table in record.tables if table.place == place]
        planes = [plane for plane in record.planes if (plane.model, plane.attack) == place]
        sections.append(
            AttackSection(
                f"attack{index}",
                ", ".join(place),
                tuple(_plane(f"plane{index}x{number}", plane, record) for number, plane in enumerate(planes)),
                tuple(_pair(table) for table in sorted(own, key=lambda table: table.round is not None)),
            )
        )
    return sections


def _plane(name: str, plane: Plane, record: ComparisonRecord) -> PlanePanel:
    metric = metric_named(metric_and_region(plane.metric)[0])
    title = f"{plane.model}, {plane.attack}: {metric.label} against macro F1"
    return PlanePanel(title, better_when(metric), plane_svg(name, plane, record.defenses))


def _pair(table: ScoreTable) -> TablePair:
    title = f"{table.model}, {table.attack}: {when(table)}"
    return TablePair(
        title, score_table("page", title, table.rows), score_table("regions", f"{title}, by region", table.rows)
    )


def _card(entry: ComparisonPictures) -> PicturesCard:
    width, pixelated = display_width(entry.original.shape[2])
    what = f"{entry.client}, round {entry.round}: {entry.class_name}"
    original = Picture(image_uri(entry.original), "Original", f"Original image of {what}", ("never leaves the client",))
    rebuilt = (
        Picture(image_uri(image), name, f"What the attack {entry.attack} rebuilt of {what}, with {name}")
        for name, image in entry.rebuilt.items()
    )
    return PicturesCard(what, f"{entry.model}, {entry.attack}", width, pixelated, (original, *rebuilt))
