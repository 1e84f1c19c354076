"""The columns in which scores are shown: one list for page, document and terminal, one for files and data frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.formatting import MISSING, counted, number, with_interval
from shadow_defense.report.kit.metrics import FIDELITY, clearness, metric_and_region, metric_of, reading
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.records.scores import Measurement, Row, ScoreTable, measurements

UTILITY: dict[str, tuple[str, str]] = {
    "f1_micro": ("Micro F1", "Over all test images together; equal to accuracy where each image has one label."),
    "f1_macro": (
        "Macro F1",
        "The mean over the classes: a rare diagnosis counts as much as a frequent one.",
    ),
    "auroc": (
        "AUROC",
        "How well the probabilities rank the images, 0.5 for a coin, 1 for no mistake; a dash where a class has no "
        "test image.",
    ),
    "accuracy": ("Accuracy", "The share of test images with the right answer."),
}
"""Measures of the task: title, and what it means."""


def metric_column(key: str) -> Column[Row]:
    """A metric of reconstructions, its region named where it is not the whole image.

    >>> metric_column("psnr_inside").title, metric_column("psnr_inside").about
    ('PSNR inside (dB)', 'lower is better protected')
    """
    metric, (_, region) = metric_of(key), metric_and_region(key)
    if region in ("inside", "outside"):
        metric = replace(metric, label=f"{metric.label} {region}")
    return Column(
        metric.title,
        lambda row: row.metrics.get(key),
        metric.digits,
        about=metric.better_when,
        difference=lambda row: row.difference.get(key),
        meaning=lambda row, difference: reading(metric, difference, baseline=row.baseline),
    )


def utility_column(key: str, title: str) -> Column[Row]:
    """A measure of the task."""
    return Column(
        title,
        lambda row: row.utility.get(key),
        about="higher is more useful" if key == "f1_macro" else "",
        difference=lambda row: row.utility_difference.get(key),
        meaning=lambda row, difference: clearness(difference),
    )


def _cost(key: str, title: str, about: str, digits: int = 2, unit: str = "×") -> Column[Row]:
    return Column(title, lambda row: row.cost.get(key), digits, unit, about)


def _epsilon(row: Row) -> str | None:
    spent = row.epsilon
    if spent is None:
        return None
    text = with_interval(spent.epsilon, 1)
    return text if spent.delta is None else f"{text} ({spent.delta:g})"


def _measured(row: Row) -> str | None:
    return ", ".join(f"{name.replace('_', ' ')} {number(value, 3)}" for name, value in row.measured.items()) or None


ARM: Column[Row] = Column("Arm", lambda row: row.arm)

_REGIONS = ("whole", "inside", "outside")

COLUMNS: dict[str, Column[Row]] = {
    "arm": ARM,
    **{f"{metric}_{region}": metric_column(f"{metric}_{region}") for region in _REGIONS for metric in FIDELITY},
    **{key: utility_column(key, title) for key, (title, _) in UTILITY.items()},
    "time": _cost("time", "Time", "times that without defense"),
    "memory": _cost("memory", "Memory", "peak, times that without defense"),
    "prepare_seconds": _cost("prepare_seconds", "Preparation", "seconds, once", 1, ""),
    "epsilon": Column("Epsilon", _epsilon, about="at delta, of the parameters sent; lower is stricter"),
    "share_bn": Column("Batch norm", lambda row: row.share_bn or MISSING, about="which of its values are shared"),
    "measured": Column("Measured by the defense", _measured, about="means"),
    "scored": Column("Scored", lambda row: f"{counted(row.images, 'image')}, {counted(row.seeds, 'seed')}"),
    "on_front": Column("Front", lambda row: "yes" if row.on_front else MISSING),
}

_WHOLE = ("psnr_whole", "ssim_whole", "lpips_whole")
VIEWS: dict[str, tuple[str, ...]] = {
    "page": ("arm", *_WHOLE, "f1_macro", "time", "memory", "epsilon", "share_bn", "scored"),
    "regions": ("arm", *(f"{metric}_{region}" for metric in FIDELITY for region in ("inside", "outside"))),
    "worth": ("arm", "f1_macro", "accuracy", "auroc", "prepare_seconds", "measured"),
    "document": (
        "arm", *_WHOLE, "psnr_inside", "psnr_outside", "f1_macro", "time", "memory", "epsilon", "share_bn", "scored",
        "on_front",
    ),
    "terminal": ("arm", *_WHOLE, "f1_macro", "time", "on_front"),
}  # fmt: skip
"""Which columns stand where, in their order."""

_ALWAYS = ("arm", "psnr_whole", "ssim_whole")


def score_table(view: str, title: str, rows: Sequence[Row]) -> Table[Row]:
    """Rows in the columns of a view, those left out in which nothing stands; on a page in small print."""
    columns = [(key, COLUMNS[key]) for key in VIEWS[view]]
    kept = [column for key, column in columns if key in _ALWAYS or any(_stands(column, row) for row in rows)]

    def mark(row: Row) -> str:
        return "baseline" if row.baseline else "front" if row.on_front and view == "page" else ""

    return Table(title, kept, rows, kind="scores", mark=mark)


def _stands(column: Column[Row], row: Row) -> bool:
    return column.cell(row).value != MISSING


def ends(value: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """An estimate's mean and the ends of its interval, as far as there are any."""
    return (None, None, None) if value is None else (value.mean, *(value.interval or (None, None)))


def end_columns(value: Callable[[Any], Estimate | None], prefix: str = "") -> list[Column[Any]]:
    """The mean of an estimate of each row, and the ends of its interval, as columns for files and data frames."""

    def end(place: int) -> Callable[[Any], float | None]:
        return lambda row: ends(value(row))[place]

    return [Column(f"{prefix}{name}", end(place)) for place, name in enumerate(("mean", "low", "high"))]


def _place(measured: Measurement) -> str | int:
    return "all" if measured.table.round is None else measured.table.round


NUMBERS: tuple[Column[Measurement], ...] = (
    *end_columns(lambda each: each.value),
    *end_columns(lambda each: each.difference, "difference_"),
)
"""A number with the ends of its 95 % interval, and its difference to the first arm; what does not exist is empty."""

ATTACK: Column[Measurement] = Column("attack", lambda each: each.table.attack)
ROUND: Column[Measurement] = Column("round", _place)
IMAGES: Column[Measurement] = Column("images", lambda each: each.row.images)


def number_table(
    columns: Sequence[Column[Measurement]], tables: Sequence[ScoreTable], kinds: Sequence[str] = ()
) -> Table[Measurement]:
    """One row a number, for CSV and data frames; of some ``kinds`` (:func:`measurements`), or of all."""
    rows = chain.from_iterable(measurements(table) for table in tables)
    return Table("", columns, [row for row in rows if not kinds or row.kind in kinds])
