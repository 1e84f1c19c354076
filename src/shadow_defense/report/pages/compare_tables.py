"""The tables of a comparison as text in cells: what leaked, what the model is worth, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadow_defense.report.comparison_content import BASELINES
from shadow_defense.report.kit.formatting import (
    METRICS,
    MISSING,
    better_when,
    metric_and_region,
    number,
    signed_with_interval,
    with_interval,
)
from shadow_defense.report.pages.run_tables import UTILITY_LABELS, Cell, Column

WHOLE = ("psnr_whole", "ssim_whole", "lpips_whole")
FOREGROUND = tuple(f"{metric}_{region}" for metric in METRICS for region in ("inside", "outside"))

_UTILITY_DIGITS = 3
_RATIO_DIGITS = 2


@dataclass(frozen=True)
class ComparisonRow:
    """One defense, or a baseline, of a table."""

    name: str
    cells: tuple[Cell, ...]
    on_front: bool = False
    baseline: bool = False


@dataclass(frozen=True)
class ComparisonTable:
    """Cells of one model and attack, in one round or in all attacked rounds together."""

    model: str
    attack: str
    when: str
    columns: tuple[Column, ...]
    rows: tuple[ComparisonRow, ...]


def clearness(mean: float, interval: Sequence[float] | None) -> str:
    """What may be said of a difference: a direction only where its interval leaves out zero.

    >>> clearness(-3.0, (-4.0, -2.0)), clearness(-3.0, (-7.0, 1.0)), clearness(3.0, None)
    ('clearly lower', 'no clear difference', 'higher, no interval')
    """
    if mean == 0 or (interval is not None and interval[0] <= 0 <= interval[1]):
        return "no clear difference"
    direction = "higher" if mean > 0 else "lower"
    return f"clearly {direction}" if interval is not None else f"{direction}, no interval"


def measured_cell(value: Mapping[str, Any] | None, difference: Mapping[str, Any] | None, digits: int) -> Cell:
    """``mean ± half the interval``, the difference to the first defense, and what that difference means."""
    if value is None:
        return Cell(MISSING)
    text = with_interval(value["mean"], value["interval"], digits)
    if difference is None:
        return Cell(text)
    mean, interval = difference["mean"], difference["interval"]
    return Cell(text, signed_with_interval(mean, interval, digits), clearness(mean, interval))


def leakage_table(
    table: Mapping[str, Any], defenses: Mapping[str, Any], front: frozenset[str] = frozenset()
) -> ComparisonTable:
    """The whole image, macro F1, cost, epsilon and the policy for batch norm's buffers, a row a defense.

    Args:
        table: an entry of ``comparison["tables"]`` or ``["ablations"]``.
        front: the defenses on the Pareto front of this model and attack.
    """
    columns = (
        *(metric_column(key) for key in WHOLE),
        Column("F1, macro", "higher is more useful"),
        Column("Time", "times that without defense"),
        Column("Memory", "peak, times that without defense"),
        Column("Epsilon", "at delta, of the parameters sent; lower is stricter"),
        Column("Batch norm", "which of its values are shared"),
        Column("Scored", ""),
    )
    return _table(table, columns, front, lambda row: _leakage_cells(row, defenses))


def foreground_table(table: Mapping[str, Any]) -> ComparisonTable:
    """Every metric inside and outside the foreground."""
    present = {key for row in table["rows"] for key in row["metrics"]}
    keys = [key for key in FOREGROUND if key in present]
    return _table(
        table, [metric_column(key) for key in keys], frozenset(), lambda row: [metric_cell(row, k) for k in keys]
    )


def worth_table(table: Mapping[str, Any]) -> ComparisonTable:
    """Every measure of utility, the seconds of preparation, and what defenses measured themselves."""
    columns = (
        *(Column(UTILITY_LABELS[key], "") for key in ("f1_macro", "accuracy", "auroc")),
        Column("Preparation", "seconds, once"),
        Column("Measured by the defense", "means"),
    )
    defended = {**table, "rows": [row for row in table["rows"] if row["defense"] not in BASELINES]}
    return _table(defended, columns, frozenset(), _worth_cells)


def metric_column(key: str) -> Column:
    """The head of a metric's column, its region named where it is not the whole image.

    >>> metric_column("psnr_inside")
    Column(title='PSNR inside (dB)', direction='lower is better protected')
    """
    name, region = metric_and_region(key)
    metric = METRICS[name]
    title = metric.label if region == "whole" else f"{metric.label} {region}"
    return Column(f"{title} ({metric.unit})" if metric.unit else title, better_when(metric))


def metric_cell(row: Mapping[str, Any], key: str) -> Cell:
    """One metric of a row."""
    digits = METRICS[metric_and_region(key)[0]].digits
    return measured_cell(row["metrics"].get(key), (row["difference"] or {}).get(key), digits)


def utility_cell(row: Mapping[str, Any], key: str = "f1_macro") -> Cell:
    """One measure of utility of a row."""
    difference = (row["utility_difference"] or {}).get(key)
    return measured_cell((row["utility"] or {}).get(key), difference, _UTILITY_DIGITS)


def ratio(row: Mapping[str, Any], key: str) -> str:
    """A cost as a multiple of that without defense: ``time`` or ``memory``.

    >>> ratio({"cost": {"time": 1.5, "memory": 1.0}}, "time"), ratio({"cost": None}, "time")
    ('1.50×', '–')
    """
    value = (row["cost"] or {}).get(key)
    return MISSING if value is None else f"{number(value, _RATIO_DIGITS)}×"


def epsilon(row: Mapping[str, Any]) -> str:
    """Epsilon with its delta.

    >>> epsilon({"epsilon": {"mean": 8.0, "interval": None, "delta": 1e-05}}), epsilon({"epsilon": None})
    ('8.0 (1e-05)', '–')
    """
    value = row["epsilon"]
    return MISSING if value is None else f"{with_interval(value['mean'], value['interval'], 1)} ({value['delta']:g})"


def counts(row: Mapping[str, Any]) -> str:
    """On how many images and seeds a row stands: fewer where a cell of the grid failed.

    >>> counts({"images": 24, "seeds": 1})
    '24 images, 1 seed'
    """
    images, seeds = row["images"], row["seeds"]
    return f"{images} image{'' if images == 1 else 's'}, {seeds} seed{'' if seeds == 1 else 's'}"


def when(table: Mapping[str, Any]) -> str:
    """Which rounds a table is about."""
    return "all attacked rounds together" if table["round"] is None else f"round {table['round']}"


def front_of(comparison: Mapping[str, Any], model: str, attack: str) -> frozenset[str]:
    """The defenses on the front of that model and attack; of all its planes, where there are several."""
    return frozenset(
        point["defense"]
        for plane in comparison["planes"]
        if (plane["model"], plane["attack"]) == (model, attack)
        for point in plane["points"]
        if point["on_front"]
    )


def _table(
    table: Mapping[str, Any],
    columns: Sequence[Column],
    front: frozenset[str],
    cells: Callable[[Mapping[str, Any]], Sequence[Cell]],
) -> ComparisonTable:
    rows = tuple(
        ComparisonRow(row["defense"], tuple(cells(row)), row["defense"] in front, row["defense"] in BASELINES)
        for row in table["rows"]
    )
    return ComparisonTable(table["model"], table["attack"], when(table), tuple(columns), rows)


def _leakage_cells(row: Mapping[str, Any], defenses: Mapping[str, Any]) -> list[Cell]:
    name = row["defense"]
    shared = defenses[name]["share_bn"] if name in defenses else MISSING
    return [
        *(metric_cell(row, key) for key in WHOLE),
        utility_cell(row),
        Cell(ratio(row, "time")),
        Cell(ratio(row, "memory")),
        Cell(epsilon(row)),
        Cell(shared),
        Cell(counts(row)),
    ]


def _worth_cells(row: Mapping[str, Any]) -> list[Cell]:
    seconds = (row["cost"] or {}).get("prepare_seconds")
    measured = ", ".join(f"{name.replace('_', ' ')} {number(value, 3)}" for name, value in row["measured"].items())
    return [
        *(utility_cell(row, key) for key in ("f1_macro", "accuracy", "auroc")),
        Cell(number(seconds, 1)),
        Cell(measured or MISSING),
    ]
