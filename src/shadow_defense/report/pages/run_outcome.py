"""The first screen of a run: what is left of one patient, against whom, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shadow_defense.metrics.recognition import RULE
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.pages.run_pictures import Tile, hero_tiles
from shadow_defense.report.records.run import Patient, RunRecord
from shadow_defense.report.sentences.run import NOT_TRIED, cost_sentence, exposure


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
