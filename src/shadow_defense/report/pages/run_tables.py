"""The report's tables: what attacks rebuilt, by region and metric, and what each arm's model is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadow_defense.report.kit.formatting import (
    METRICS,
    MISSING,
    REGIONS,
    Metric,
    better_when,
    metric_and_region,
    metric_named,
    number,
    reading,
    signed,
    signed_with_interval,
    with_interval,
)

BASELINE = "mean image"

_UTILITY_DIGITS = 3

UTILITY_LABELS: dict[str, str] = {
    "f1_micro": "F1, micro",
    "f1_macro": "F1, macro",
    "auroc": "AUROC",
    "accuracy": "Accuracy",
}

UTILITY_EXPLANATIONS: dict[str, str] = {
    "F1, micro": "Over all test images together; equal to accuracy where each image has one label.",
    "F1, macro": "The mean over the classes: a rare diagnosis counts as much as a frequent one.",
    "AUROC": "How well the probabilities rank the images, 0.5 for a coin, 1 for no mistake; a dash where a class "
    "has no test image.",
    "Accuracy": "The share of test images with the right answer.",
}


SHARED_BATCH_NORM: dict[str | None, str] = {
    "all": "all of it",
    "parameters": "scales and shifts",
    "stats": "running statistics",
    "none": "nothing",
    None: MISSING,
}


@dataclass(frozen=True)
class Cell:
    """A value, its difference to the first arm, and what the difference means; the latter two may be empty."""

    value: str
    difference: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column: a metric with its unit, and which direction protects better."""

    title: str
    direction: str


@dataclass(frozen=True)
class Row:
    """One arm of a table."""

    name: str
    count: str
    cells: tuple[Cell, ...]
    baseline: bool = False


@dataclass(frozen=True)
class Group:
    """The rows of one region of the images."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class MetricTable:
    """One attack in one round, or in all attacked rounds together."""

    attack: str
    title: str
    pooled: bool
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class UtilityTable:
    """Arms by measure, and the F1 of every class by arm."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    arms: tuple[str, ...]
    classes: tuple[Row, ...]


def metric_table(table: Mapping[str, Any]) -> MetricTable:
    """One entry of ``results["tables"]``, its metrics sorted into regions (groups) and metrics (columns)."""
    keys = {key: metric_and_region(key) for row in table["rows"] for key in row["metrics"]}
    present = {name for name, _ in keys.values()}
    names = [name for name in METRICS if name in present] + sorted(present - METRICS.keys())
    named_in = {region: [name for name, place in keys.values() if place == region] for region in REGIONS}
    key_of = {place: key for key, place in keys.items()}
    groups = tuple(
        Group(title, tuple(_metric_row(row, [key_of.get((name, region)) for name in names]) for row in table["rows"]))
        for region, title in REGIONS.items()
        if named_in[region]
    )
    pooled = table["round"] is None
    return MetricTable(
        attack=table["attack"],
        title="All attacked rounds together" if pooled else f"Round {table['round']}",
        pooled=pooled,
        columns=tuple(_column(metric_named(name)) for name in names),
        groups=groups,
    )


def _column(metric: Metric) -> Column:
    title = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    return Column(title, better_when(metric))


def _metric_row(row: Mapping[str, Any], keys: Sequence[str | None]) -> Row:
    baseline = row["arm"] == BASELINE
    cells = tuple(_metric_cell(row, key, baseline) for key in keys)
    return Row(row["arm"], str(row["images"]), cells, baseline)


def _metric_cell(row: Mapping[str, Any], key: str | None, baseline: bool) -> Cell:
    measured = row["metrics"].get(key)
    if key is None or measured is None:
        return Cell(MISSING)
    metric = metric_named(metric_and_region(key)[0])
    value = with_interval(measured["mean"], measured["interval"], metric.digits)
    difference = (row["difference"] or {}).get(key)
    if difference is None:
        return Cell(value)
    mean, interval = difference["mean"], difference["interval"]
    return Cell(
        value,
        signed_with_interval(mean, interval, metric.digits),
        reading(metric, mean, interval, baseline=baseline),
    )


def utility_table(arms: Mapping[str, Any], classes: Sequence[str]) -> UtilityTable:
    """F1, AUROC and accuracy on the test images by arm, each with its difference to the first arm."""
    measures = [key for key in UTILITY_LABELS if any(key in arm["test"] for arm in arms.values())]
    tests = {name: arm["test"] for name, arm in arms.items()}
    return UtilityTable(
        columns=tuple(UTILITY_LABELS[key] for key in measures),
        rows=tuple(Row(name, "", tuple(_utility_cell(tests, name, key) for key in measures)) for name in tests),
        arms=tuple(tests),
        classes=tuple(
            Row(label, "", tuple(_utility_cell(tests, name, f"f1_class_{index}") for name in tests))
            for index, label in enumerate(classes)
        ),
    )


def shared_batch_norm(arms: Mapping[str, Any]) -> dict[str, str]:
    """What of batch norm leaves the clients in each arm, in words; empty where no arm's model has any."""
    # Results that were written before there was a choice do not name it.
    policies = {name: arm.get("share_bn") for name, arm in arms.items()}
    return {name: SHARED_BATCH_NORM[policy] for name, policy in policies.items()} if any(policies.values()) else {}


def _utility_cell(tests: Mapping[str, Mapping[str, float | None]], arm: str, key: str) -> Cell:
    first = next(iter(tests))
    value, reference = tests[arm].get(key), tests[first].get(key)
    if arm == first or value is None or reference is None:
        return Cell(number(value, _UTILITY_DIGITS))
    return Cell(number(value, _UTILITY_DIGITS), signed(value - reference, _UTILITY_DIGITS))
