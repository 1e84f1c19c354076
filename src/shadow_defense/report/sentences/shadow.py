"""What a comparison says about Shadow Defense: against no defense, against its control, against the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shadow_defense.metrics.pareto import dominates
from shadow_defense.report.comparison_content import goodness
from shadow_defense.report.kit.formatting import listed
from shadow_defense.report.sentences.differences import direction, sentences_of, spoken, unpaired_difference

Row = Mapping[str, Any]

_LEAKAGE = ("psnr_whole", "ssim_whole")
_MOST_NAMES = 4


def shadow_names(defenses: Mapping[str, Any]) -> list[str]:
    """The points of Shadow Defense itself: not its controls, and not what combines it with others.

    >>> shadow_names({"s": {"defense": "shadow", "options": {}}, "none": {"defense": "none", "options": {}},
    ...               "u": {"defense": "shadow", "options": {"placement": "uniform"}}})
    ['s']
    """
    return [
        name
        for name, defense in defenses.items()
        if defense["defense"] == "shadow" and defense["options"].get("placement", "targeted") == "targeted"
    ]


def uniform_control(name: str, defenses: Mapping[str, Any]) -> str | None:
    """The defense that differs from a point of Shadow Defense in nothing but noise of equal energy everywhere."""

    def rest(defense: Mapping[str, Any]) -> tuple[Any, ...]:
        options = {key: value for key, value in defense["options"].items() if key != "placement"}
        return defense["preset"], options, defense["share_bn"]

    for other, defense in defenses.items():
        uniform = defense["defense"] == "shadow" and defense["options"].get("placement") == "uniform"
        if uniform and rest(defense) == rest(defenses[name]):
            return other
    return None


def shadow_sentences(
    defenses: Mapping[str, Any], tables: Sequence[Mapping[str, Any]], planes: Sequence[Mapping[str, Any]]
) -> list[str]:
    """At most seven sentences on one model; none where Shadow Defense was not compared.

    Args:
        tables: one for each attack, all of one model; ``planes``: of the same model.
    """
    shadows = [name for name in shadow_names(defenses) if any(name in _rows(table) for table in tables)]
    if not shadows or not tables:
        return []
    return [
        *_lowering_sentences(shadows, tables),
        _control_sentence(shadows, defenses, tables),
        *_worth_sentences(shadows, defenses, tables[0]),
        *_domination_sentences(shadows, planes),
    ]


def _rows(table: Mapping[str, Any]) -> dict[str, Row]:
    return {row["defense"]: row for row in table["rows"]}


def _lowering_sentences(shadows: Sequence[str], tables: Sequence[Mapping[str, Any]]) -> list[str]:
    clauses = []
    for table in tables:
        rows = _rows(table)
        outcomes: dict[str, list[str]] = {}
        for name in shadows:
            if name in rows:
                differences = rows[name]["difference"] or {}
                outcome = _lowering([direction(differences.get(key)) for key in _LEAKAGE])
                outcomes.setdefault(outcome, []).append(name)
        said = []
        for outcome, names in outcomes.items():
            numbers = _numbers(rows[names[-1]]["difference"] or {})
            said.append(f"{listed(names)} {outcome} ({'the last: ' if len(names) > 1 else ''}{numbers})")
        clauses.append(f"under {table['attack']}, {'; '.join(said) or 'nothing was scored'}")
    return sentences_of("against no defense, ", clauses)


def _lowering(directions: Sequence[int]) -> str:
    if min(directions) == -1:
        return "clearly lowered PSNR and SSIM" if max(directions) == -1 else "clearly lowered only one of PSNR and SSIM"
    return "clearly raised PSNR or SSIM" if max(directions) == 1 else "clearly lowered neither PSNR nor SSIM"


def _numbers(differences: Mapping[str, Any]) -> str:
    texts = [
        f"{label} {spoken(differences[key], digits, unit)}"
        for key, label, digits, unit in (("psnr_whole", "PSNR", 1, "dB"), ("ssim_whole", "SSIM", 2, ""))
        if differences.get(key) is not None
    ]
    return ", ".join(texts) or "not measured"


def _control_sentence(shadows: Sequence[str], defenses: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> str:
    outcomes: dict[str, list[str]] = {"less": [], "more": [], "neither": []}
    paired = True
    for table in tables:
        for row, control in _controlled(shadows, defenses, table):
            paired &= bool(row.get("control_difference"))
            directions = [direction(_difference(row, control, key)) for key in _LEAKAGE]
            total = min(directions) + max(directions)
            outcome = "less" if total < 0 else "more" if total > 0 else "neither"
            outcomes[outcome].append(f"{row['defense']} under {table['attack']}")
    count = sum(len(names) for names in outcomes.values())
    how = "paired by image" if paired else "from intervals that are not paired by image, so wider than need be"
    if not count:
        return "no uniform-noise control of Shadow Defense's energy was measured, so that nothing is said of its aim."
    if len(outcomes["neither"]) == count:
        return (
            "against its uniform-noise control of equal energy, Shadow Defense let clearly less or more through in "
            f"none of {count} {_pairs(count)} ({how}): where the noise goes made no difference that can be told here."
        )
    return (
        f"against its uniform-noise control of equal energy, Shadow Defense let clearly less through in "
        f"{_counted(outcomes['less'])} of {count} {_pairs(count)}, clearly more in {_counted(outcomes['more'])}, and "
        f"neither in {len(outcomes['neither'])} ({how})."
    )


def _pairs(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _counted(names: list[str]) -> str:
    return f"{len(names)} ({_some(names)})" if names else "0"


def _some(names: list[str]) -> str:
    """Not more names than a sentence bears.

    >>> _some(list("abcdef"))
    'a, b, c, d and 2 more'
    """
    if len(names) <= _MOST_NAMES:
        return listed(names)
    return listed([*names[:_MOST_NAMES], f"{len(names) - _MOST_NAMES} more"])


def _controlled(
    shadows: Sequence[str], defenses: Mapping[str, Any], table: Mapping[str, Any]
) -> Iterator[tuple[Row, Row]]:
    rows = _rows(table)
    for name in shadows:
        control = uniform_control(name, defenses)
        if name in rows and control in rows:
            yield rows[name], rows[control]


def _difference(row: Row, control: Row, key: str) -> Mapping[str, Any] | None:
    """Shadow less control in a metric: paired by image where the engine gave it."""
    paired = (row.get("control_difference") or {}).get(key)
    return paired or unpaired_difference(row["metrics"].get(key), control["metrics"].get(key))


def _worth_sentences(shadows: Sequence[str], defenses: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    rows = _rows(table)
    costs: dict[str, list[str]] = {}
    for name in shadows:
        difference = (rows[name]["utility_difference"] or {}).get("f1_macro") if name in rows else None
        if difference is not None:
            word = {-1: "clearly lower with", 0: "not clearly changed by", 1: "clearly higher with"}
            costs.setdefault(word[direction(difference)], []).append(f"{name} ({spoken(difference, 3)})")
    sentences = []
    if costs:
        sentences.append(f"macro F1 was {'; '.join(f'{word} {listed(names)}' for word, names in costs.items())}.")
    against: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for row, control in _controlled(shadows, defenses, table):
        paired = (row.get("control_difference") or {}).get("f1_macro")
        worths = [(each["utility"] or {}).get("f1_macro") for each in (row, control)]
        against[direction(paired or unpaired_difference(*worths))].append(row["defense"])
    count = sum(len(names) for names in against.values())
    if count:
        sentences.append(
            f"macro F1 against that of the uniform control was clearly better in {_counted(against[1])} of {count} "
            f"{_pairs(count)}, clearly worse in {_counted(against[-1])}."
        )
    return sentences


def _domination_sentences(shadows: Sequence[str], planes: Sequence[Mapping[str, Any]]) -> list[str]:
    clauses, explained = list[str](), False
    for plane in planes:
        points = {point["defense"]: point for point in plane["points"]}
        own = [name for name in shadows if name in points]
        dominated, free = [], []
        for name in own:
            better = [other for other in points if other not in shadows and _dominates(plane, points, other, name)]
            clear = [other for other in better if _clearly(points[other], points[name])]
            if better:
                dominated.append(f"{name} by {len(better)} ({_some(clear)})")
            else:
                free.append(name)
        if dominated:
            others = f"; {listed(free)} by no other" if free else ""
            # Once: what holds for every attack is not said again.
            how = "" if explained else "(by the means; in brackets those clearly ahead in privacy or F1) "
            explained = True
            clauses.append(f"under {plane['attack']}, other defenses dominate {how}{', '.join(dominated)}{others}")
        elif own:
            clauses.append(f"under {plane['attack']}, no other defense dominates {listed(free)}")
    return sentences_of("", clauses)


def _dominates(plane: Mapping[str, Any], points: Mapping[str, Row], other: str, name: str) -> bool:
    return dominates(*(goodness(plane["metric"], points[each]) for each in (other, name)))


def _clearly(other: Row, point: Row) -> bool:
    # The means point the right way already: that a difference is clear is all there is to ask.
    return any(direction(unpaired_difference(other[key], point[key])) != 0 for key in ("privacy", "utility"))
