"""The page of a run: what attacks rebuilt in each arm, where noise went, and what it cost the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shadow_defense.metrics.recognition import RULE
from shadow_defense.report.columns import (
    ARM,
    ATTACK,
    COLUMNS,
    IMAGES,
    NUMBERS,
    ROUND,
    UTILITY,
    metric_column,
    number_table,
    score_table,
)
from shadow_defense.report.kit.charts import Panel, Style, legend, styles
from shadow_defense.report.kit.formatting import counted, listed
from shadow_defense.report.kit.metrics import FIDELITY, REGIONS, metric_and_region
from shadow_defense.report.kit.pictures import SIGNED_TABLE, colour_bar, heat_bar
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.pages.run_charts import curve_panels, score_panels
from shadow_defense.report.pages.run_pictures import Tile, contact_sheet, hero_tiles, noise_cards
from shadow_defense.report.records.run import Patient, RunRecord
from shadow_defense.report.records.scores import MEAN_IMAGE, Measurement, Row, ScoreTable
from shadow_defense.report.sentences.run import NOT_TRIED, cost_sentence, exposure

SHARED_BATCH_NORM = {
    "all": "all of it",
    "parameters": "scales and shifts",
    "stats": "running statistics",
    "none": "nothing",
}


@dataclass(frozen=True)
class AttackResults:
    """All tables of one attack: the first is shown open, with its charts; the others are folded."""

    name: str
    charts: Sequence[Panel]
    tables: Sequence[Table[RegionRow]]


@dataclass(frozen=True)
class RegionRow:
    """A row of scores in one region of the images."""

    row: Row
    region: str


def render_run(record: RunRecord, patients: Sequence[Patient] = ()) -> str:
    """The whole page as one HTML document with its pictures, charts and style inside.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    titled = _titled(record)
    looks = styles(titled.arms)
    return render_page(
        "run",
        record,
        seeds=(record.seed,),
        summary=summary(record),
        attacked=attacked(record),
        outcome=outcome(record, patients),
        sheet=contact_sheet(record, patients),
        images=len({(sight.client, sight.sample_id) for sight in record.sights}),
        noise_cards=noise_cards(record, patients),
        heat_bar=heat_bar(),
        noise_bar=colour_bar(SIGNED_TABLE),
        attacks=_attack_results(titled, looks),
        metrics=FIDELITY.values(),
        baseline=MEAN_IMAGE,
        utility=_utility_table(titled),
        classes=_class_table(titled),
        utility_terms=UTILITY.values(),
        shared_batch_norm=_shared_batch_norm(record),
        curves=curve_panels(titled.arms, looks),
        legend=legend("arm", looks),
    )


def _titled(record: RunRecord) -> RunRecord:
    """The record with its arms, in all tables, under the titles that pages call them by."""
    titles = {name: arm.title for name, arm in record.arms.items()}

    def rows(of: Sequence[Row]) -> tuple[Row, ...]:
        return tuple(replace(row, arm=titles.get(row.arm, row.arm)) for row in of)

    return replace(
        record,
        arms={arm.title: arm for arm in record.arms.values()},
        utilities=rows(record.utilities),
        tables=tuple(replace(table, rows=rows(table.rows)) for table in record.tables),
    )


def run_numbers(record: RunRecord) -> Table[Measurement]:
    """Every score of every arm, one a row, for CSV and data frames."""
    metric: Column[Measurement] = Column("metric", lambda each: each.name)
    arm: Column[Measurement] = Column("arm", lambda each: each.row.arm)
    columns = (ATTACK, ROUND, arm, metric, *NUMBERS[:3], IMAGES, *NUMBERS[3:])
    return number_table(columns, record.tables, ("privacy",))


def run_summary(record: RunRecord) -> list[Table[Row]]:
    """For the terminal, for each attack: what it reaches in each arm, and what the task reaches."""
    return [
        score_table("terminal", f"What {table.attack} rebuilds, and what the task reaches", table.rows)
        for table in record.pooled
    ]


def _attack_results(record: RunRecord, looks: Mapping[str, Style]) -> list[AttackResults]:
    attacks: dict[str, list[ScoreTable]] = {}
    # What all rounds say together comes first; sorting keeps the order of the others.
    for table in sorted(record.tables, key=lambda table: table.round is not None):
        attacks.setdefault(table.attack, []).append(table)
    order = dict.fromkeys(table.attack for table in record.tables)
    return [
        AttackResults(
            name,
            score_panels(f"scores{index}", attacks[name][0], looks),
            [metric_table(table) for table in attacks[name]],
        )
        for index, name in enumerate(order)
    ]


def metric_table(table: ScoreTable) -> Table[RegionRow]:
    """The metrics of one attack, a group of rows for each region of the images."""
    places = [metric_and_region(key) for key in dict.fromkeys(key for row in table.rows for key in row.metrics)]
    present = {name for name, _ in places}
    names = [name for name in FIDELITY if name in present] + sorted(present - FIDELITY.keys())
    when = "All attacked rounds together" if table.round is None else f"Round {table.round}"
    return Table(
        f"{table.attack}: {when}",
        (
            Column("Arm", lambda each: each.row.arm),
            *(_region_column(name) for name in names),
            Column("Images", lambda each: str(each.row.images)),
        ),
        [
            RegionRow(row, region)
            for region in REGIONS
            if any(place == region for _, place in places)
            for row in table.rows
        ],
        group=lambda each: REGIONS[each.region],
        mark=lambda each: "baseline" if each.row.baseline else "",
    )


def _region_column(name: str) -> Column[RegionRow]:
    def key(region: str) -> str:
        return name if region == "other" else f"best_match_{name}" if region == "best_match" else f"{name}_{region}"

    shown = metric_column(key("whole"))
    return Column(
        shown.title,
        lambda each: each.row.metrics.get(key(each.region)),
        shown.digits,
        about=shown.about,
        difference=lambda each: each.row.difference.get(key(each.region)),
        meaning=lambda each, difference: shown.meaning(each.row, difference),
    )


def _utility_table(record: RunRecord) -> Table[Row]:
    rows = record.utilities
    present = [COLUMNS[key] for key in UTILITY if any(key in arm.test for arm in record.arms.values())]
    return Table("Utility by arm", (ARM, *present), rows)


def _class_table(record: RunRecord) -> Table[int]:
    rows = {row.arm: row for row in record.utilities}

    def of_arm(name: str) -> Column[int]:
        return Column(
            name,
            lambda index: rows[name].utility.get(f"f1_class_{index}"),
            difference=lambda index: rows[name].utility_difference.get(f"f1_class_{index}"),
        )

    labels = record.data.classes
    columns = (Column("Class", lambda index: labels[index]), *(of_arm(name) for name in rows))
    return Table("F1 of each class", columns, range(len(labels)))


def _shared_batch_norm(record: RunRecord) -> dict[str, str]:
    """What of batch norm leaves the clients in each arm, in words; empty where no arm's model has any."""
    policies = {name: arm.share_bn for name, arm in record.arms.items()}
    if not any(policies.values()):
        return {}
    return {name: SHARED_BATCH_NORM[policy] if policy else "–" for name, policy in policies.items()}


def summary(record: RunRecord) -> str:
    """What was done, in two plain sentences."""
    size = " × ".join(str(side) for side in record.data.image_size)
    images, arms = record.data.in_words or record.data.name, counted(len(record.arms), "arm")
    first = (
        f"{counted(len(record.data.clients), 'client')} trained one model together on {images} ({size} pixels), once "
        f"for each of {arms}."
    )
    if not record.attacks:
        return f"{first} No attack was run: this page shows what each defense cost the model."
    return f"{first} This is what attackers make of the images, from nothing but what the clients sent."


def attacked(record: RunRecord) -> str:
    """Which attacks were run, and on what."""
    rounds = max((len(arm.history) for arm in record.arms.values()), default=0)
    tried = [
        f"{name} in round{'s' if len(attack.rounds) > 1 else ''} {listed(attack.rounds)}"
        for name, attack in record.attacks.items()
    ]
    return f"{counted(rounds, 'round')} of training; attacks: {listed(tried)}."


@dataclass(frozen=True)
class Outcome:
    """One patient in tiles, what is said beside them (term, text), and every arm in a table."""

    tiles: Sequence[Tile]
    facts: Sequence[tuple[str, str]]
    arms: Table[str]


def outcome(record: RunRecord, patients: Sequence[Patient]) -> Outcome | None:
    """The first screen; None where nothing was attacked."""
    tiles = hero_tiles(record, patients)
    return Outcome(tiles, _facts(record), _arms(record)) if tiles else None


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    name = record.answer
    shown = next(iter(record.arms)) if name is None else name
    arm, kinds = record.arms[shown], record.attackers
    facts = [(f"{arm.title}, worst case of all attackers", exposure(record.closest(shown).values()))]
    for kind, attacks in kinds.items():
        sights = record.closest(shown, attacks)
        if sights:
            facts.append((kind[:1].upper() + kind[1:], exposure(sights.values())))
    if not any(attack.knows_defense for attack in record.attacks.values()):
        facts.append(("Attackers who know the defense", f"{NOT_TRIED}: what holds only against others is a secret"))
    if name is not None:
        facts.append(("What it cost", cost_sentence(record, arm)))
    return [*facts, ("The rule", RULE)]


def _arms(record: RunRecord) -> Table[str]:
    def seen(kind: str, attacks: Sequence[str]) -> Column[str]:
        title = kind[:1].upper() + kind[1:]
        return Column(title, lambda name: exposure(record.closest(name, attacks).values()))

    return Table(
        "What attackers make of every arm",
        (
            Column("Arm", lambda name: record.arms[name].title),
            *(seen(kind, attacks) for kind, attacks in record.attackers.items()),
            Column("Macro F1", lambda name: record.arms[name].test.get("f1_macro")),
        ),
        list(record.arms),
        kind="words",
    )
