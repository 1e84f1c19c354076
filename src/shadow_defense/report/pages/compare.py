"""The page of a comparison: privacy against utility, what attackers rebuilt, and every number in tables; and
the same as GitHub Markdown, for docs/results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shadow_defense.report.columns import ATTACK, IMAGES, NUMBERS, ROUND, number_table, score_table
from shadow_defense.report.kit.charts import Panel
from shadow_defense.report.kit.formatting import counted, markdown_code, markdown_text
from shadow_defense.report.kit.metrics import FIDELITY, metric_of
from shadow_defense.report.kit.pictures import Picture, picture
from shadow_defense.report.kit.plane import plane_svg
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.comparison import ComparisonPictures, ComparisonRecord, DefenseEntry, Plane
from shadow_defense.report.records.reading import Settings
from shadow_defense.report.records.scores import BASELINES, Measurement, Row, ScoreTable

TablePair = tuple[Table[Row], Table[Row]]
"""What leaked in one round, or in all of them together: over the whole image, and by region."""


@dataclass(frozen=True)
class AttackSection:
    """One model under one attack: what all attacked rounds say together comes first."""

    anchor: str
    title: str
    planes: tuple[Panel, ...]
    tables: tuple[TablePair, ...]


def render_comparison(
    record: ComparisonRecord, pictures: Sequence[ComparisonPictures] = (), page: str = "compare", **parts: object
) -> str:
    """The whole page as one HTML document with its planes, pictures, tables and style inside.

    Args:
        page: the template; another one than a comparison's lays out ``parts`` besides.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    models = dict.fromkeys(table.model for table in record.tables)
    pooled = [next(iter(record.pooled(model)), None) for model in models]
    return render_page(
        page,
        record,
        seeds=record.seeds,
        baselines=BASELINES,
        metrics=FIDELITY.values(),
        sections=_sections(record),
        worth=[
            score_table("worth", f"{table.model}: utility and cost", [row for row in table.rows if not row.baseline])
            for table in pooled
            if table is not None
        ],
        ablations=[_pair(table, "ablations of ") for table in record.ablations],
        cards=[_card(entry) for entry in pictures],
        **parts,
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


def _plane(name: str, plane: Plane, record: ComparisonRecord) -> Panel:
    metric = metric_of(plane.metric)
    title = f"{plane.model}, {plane.attack}: {metric.label} against macro F1 ({metric.better_when})"
    return Panel(title, plane_svg(name, plane, record.defenses))


def _pair(table: ScoreTable, part: str = "") -> TablePair:
    # Each table another title: readers who hear the page find them by it.
    title = f"{part}{table.model}, {table.attack}: {when(table)}"
    return score_table("page", title, table.rows), score_table("regions", f"{title}, by region", table.rows)


def _card(entry: ComparisonPictures) -> tuple[str, list[Picture]]:
    """One image and what one attack rebuilt of it under each defense, with their heading."""
    what = f"{entry.client}, round {entry.round}: {entry.class_name}"
    original = picture(entry.original, "Original", f"Original image of {what}", "never leaves the client")
    rebuilt = (
        picture(image, name, f"What the attack {entry.attack} rebuilt of {what}, with {name}")
        for name, image in entry.rebuilt.items()
    )
    return f"{entry.model}, {entry.attack}: {what}", [original, *rebuilt]


def comparison_markdown(record: ComparisonRecord, first: Sequence[str] = ()) -> str:
    """What was compared, by which command, on which data, with which versions, when; then ``first`` and every table."""
    parts = [
        f"# {markdown_text(record.title)}",
        f"```\n{markdown_code(record.command)}\n```",
        "\n".join(f"- {line}" for line in _setup(record)),
        *_bullets("What the numbers say", record.verdict),
        *first,
        "Mean ± half the 95 % interval over images and seeds. In brackets the difference to "
        f"{markdown_text(record.first)}, paired by image and seed, with a star where its interval leaves out zero. "
        "Lower PSNR and SSIM and higher LPIPS are better protected. Front: on the Pareto front of that attack's "
        "privacy-utility plane, by the means alone. Time and memory are multiples of those without defense. "
        "Epsilon is followed by its delta; it is that of the parameters sent: batch norm's statistics, where they "
        "leave (all or stats), are not covered. Batch norm: which of its values are shared.",
    ]
    for heading, tables in (("Comparison", record.tables), ("Ablations", record.ablations)):
        if tables:
            parts.append(f"## {heading}")
        for table in tables:
            parts.append(f"### {markdown_text(table.model)}, {markdown_text(table.attack)}, {when(table)}")
            parts.append(score_table("document", "", table.rows).markdown())
    parts += _bullets("Left out", [f"{entry.defense} with {entry.model}: {entry.reason}" for entry in record.left_out])
    parts += _bullets("Failed", [f"{failure.cell}: {failure.error}" for failure in record.failures])
    parts += _bullets("Notes", record.notes)
    return "\n\n".join(parts) + "\n"


def _bullets(heading: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return []
    return [f"## {heading}", "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)]


def _setup(record: ComparisonRecord) -> list[str]:
    data = record.data
    height, width = data.image_size
    sizes = ", ".join(str(client.train) for client in data.clients.values())
    hashes = {"": data.sha256} if isinstance(data.sha256, str) else data.sha256
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [
        f"Date: {markdown_text(record.created)}.",
        f"Data: {markdown_text(data.name)}, {height} x {width} px, {counted(data.channels, 'channel')}; training "
        f"images by client: {sizes}; {data.public} public, {data.test} test images.",
        f"SHA-256 of the data: {'; '.join(f'seed {seed} `{markdown_code(value)}`' for seed, value in hashes.items())}.",
        f"Seeds: {', '.join(map(str, record.seeds))}.",
        f"Versions: {markdown_text(versions)}.",
        *(f"Model {markdown_text(name)}: `{_settings(settings)}`." for name, settings in record.models.items()),
        *(
            f"Attack {markdown_text(name)}: {markdown_text(attack.attack)}, rounds "
            f"{', '.join(map(str, attack.rounds))}, {counted(len(attack.clients), 'client')}, "
            f"`{_settings(attack.settings)}`."
            for name, attack in record.attacks.items()
        ),
    ]


def _settings(settings: Settings) -> str:
    return markdown_code(json.dumps(settings, ensure_ascii=False))
