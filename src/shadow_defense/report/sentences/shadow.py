"""What a comparison says about Shadow Defense: against no defense, against its control, against the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.pareto import dominates
from shadow_defense.report.kit.formatting import counted, listed
from shadow_defense.report.records.comparison import DefenseEntry, Plane
from shadow_defense.report.records.scores import Row, ScoreTable
from shadow_defense.report.sentences.differences import (
    counted_names,
    direction,
    sentences_of,
    some,
    spoken,
    unpaired_difference,
)

_LEAKAGE = ("psnr_whole", "ssim_whole")

Defenses = Mapping[str, DefenseEntry]


def shadow_sentences(defenses: Defenses, tables: Sequence[ScoreTable], planes: Sequence[Plane]) -> list[str]:
    """At most seven sentences on one model; none where Shadow Defense was not compared.

    Its arms are those that aim their noise: not its controls, and not what combines it with others.

    Args:
        tables: one for each attack, all of one model; ``planes``: of the same model.
    """
    aimed = [name for name, entry in defenses.items() if entry.placement == "targeted"]
    shadows = [name for name in aimed if any(table.row(name) for table in tables)]
    if not shadows or not tables:
        return []
    return [
        *_lowering_sentences(shadows, tables),
        _control_sentence(shadows, defenses, tables),
        *_worth_sentences(shadows, defenses, tables[0]),
        # An attack that does not beat a guess ranks nobody.
        *_domination_sentences(shadows, [plane for plane in planes if plane.ranked]),
    ]


def _lowering_sentences(shadows: Sequence[str], tables: Sequence[ScoreTable]) -> list[str]:
    clauses = []
    for table in tables:
        outcomes: dict[str, list[Row]] = {}
        for row in filter(None, map(table.row, shadows)):
            outcome = _lowering([direction(row.difference.get(key)) for key in _LEAKAGE])
            outcomes.setdefault(outcome, []).append(row)
        said = [
            f"{listed([row.arm for row in rows])} {outcome} "
            f"({'the last: ' if len(rows) > 1 else ''}{_numbers(rows[-1].difference)})"
            for outcome, rows in outcomes.items()
        ]
        clauses.append(f"under {table.attack}, {'; '.join(said) or 'nothing was scored'}")
    return sentences_of("against no defense, ", clauses)


def _lowering(directions: Sequence[int]) -> str:
    if min(directions) == -1:
        return "clearly lowered PSNR and SSIM" if max(directions) == -1 else "clearly lowered only one of PSNR and SSIM"
    return "clearly raised PSNR or SSIM" if max(directions) == 1 else "clearly lowered neither PSNR nor SSIM"


def _numbers(differences: Mapping[str, Estimate]) -> str:
    texts = [
        f"{label} {spoken(differences[key], digits, unit)}"
        for key, label, digits, unit in (("psnr_whole", "PSNR", 1, "dB"), ("ssim_whole", "SSIM", 2, ""))
        if key in differences
    ]
    return ", ".join(texts) or "not measured"


def _control_sentence(shadows: Sequence[str], defenses: Defenses, tables: Sequence[ScoreTable]) -> str:
    less, more, neither = list[str](), list[str](), list[str]()
    paired = True
    for table in tables:
        for row, control in _controlled(shadows, defenses, table):
            paired &= bool(row.control_difference)
            directions = [direction(_to_control(row, control, key)) for key in _LEAKAGE]
            total = min(directions) + max(directions)
            (less if total < 0 else more if total > 0 else neither).append(f"{row.arm} under {table.attack}")
    count = len(less) + len(more) + len(neither)
    how = "paired by image" if paired else "from intervals that are not paired by image, so wider than need be"
    if not count:
        return "no uniform-noise control of Shadow Defense's energy was measured, so that nothing is said of its aim."
    if len(neither) == count:
        return (
            "against its uniform-noise control of equal energy, Shadow Defense let clearly less or more through in "
            f"none of {counted(count, 'pair')} ({how}): where the noise goes made no difference that can be told here."
        )
    return (
        f"against its uniform-noise control of equal energy, Shadow Defense let clearly less through in "
        f"{counted_names(less)} of {counted(count, 'pair')}, clearly more in {counted_names(more)}, and neither in "
        f"{len(neither)} ({how})."
    )


def _controlled(shadows: Sequence[str], defenses: Defenses, table: ScoreTable) -> Iterator[tuple[Row, Row]]:
    for name in shadows:
        row, control = table.row(name), table.row(defenses[name].control or "")
        if row is not None and control is not None:
            yield row, control


def _to_control(row: Row, control: Row, key: str) -> Estimate | None:
    """Shadow less control in a metric or macro F1: paired where the engine gave it."""
    values = [each.utility.get(key) or each.metrics.get(key) for each in (row, control)]
    return row.control_difference.get(key) or unpaired_difference(*values)


def _worth_sentences(shadows: Sequence[str], defenses: Defenses, table: ScoreTable) -> list[str]:
    costs: dict[str, list[str]] = {}
    words = {-1: "clearly lower with", 0: "not clearly changed by", 1: "clearly higher with"}
    for row in filter(None, map(table.row, shadows)):
        difference = row.utility_difference.get("f1_macro")
        if difference is not None:
            costs.setdefault(words[direction(difference)], []).append(f"{row.arm} ({spoken(difference, 3)})")
    sentences = []
    if costs:
        sentences.append(f"macro F1 was {'; '.join(f'{word} {listed(names)}' for word, names in costs.items())}.")
    against: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for row, control in _controlled(shadows, defenses, table):
        against[direction(_to_control(row, control, "f1_macro"))].append(row.arm)
    count = sum(len(names) for names in against.values())
    if count:
        sentences.append(
            f"macro F1 against that of the uniform control was clearly better in {counted_names(against[1])} of "
            f"{counted(count, 'pair')}, clearly worse in {counted_names(against[-1])}."
        )
    return sentences


def _domination_sentences(shadows: Sequence[str], planes: Sequence[Plane]) -> list[str]:
    clauses, explained = list[str](), False
    for plane in planes:
        points = {point.arm: point for point in plane.points}
        dominated, free = [], []
        for name in shadows:
            if name not in points:
                continue
            own = points[name]
            better = [
                other
                for other in plane.points
                if other.arm not in shadows and dominates(plane.goodness(other), plane.goodness(own))
            ]
            # The means point the right way already: that a difference is clear is all there is to ask.
            clear = [
                other.arm
                for other in better
                if direction(unpaired_difference(other.privacy, own.privacy))
                or direction(unpaired_difference(other.utility, own.utility))
            ]
            if better:
                dominated.append(f"{name} by {len(better)} ({some(clear)})")
            else:
                free.append(name)
        if dominated:
            others = f"; {listed(free)} by no other" if free else ""
            # Once: what holds for every attack is not said again.
            how = "" if explained else "(by the means; in brackets those clearly ahead in privacy or F1) "
            explained = True
            clauses.append(f"under {plane.attack}, other defenses dominate {how}{', '.join(dominated)}{others}")
        elif free:
            clauses.append(f"under {plane.attack}, no other defense dominates {listed(free)}")
    return sentences_of("", clauses)
