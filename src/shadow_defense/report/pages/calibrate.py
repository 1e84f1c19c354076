"""The page of a calibration: leakage against strength, the chosen setting to paste, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.charts import Panel, legend_key, styles
from shadow_defense.report.kit.formatting import number, signed_with_interval, with_interval
from shadow_defense.report.kit.strength_chart import Level, Point, Series, strength_chart
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import nested_text, render_page
from shadow_defense.report.records.calibration import LEAKAGE, CalibrationRecord, ScheduleEntry, Strength


@dataclass(frozen=True)
class StrengthRow:
    """One measured setting of the table; ``schedule`` is ``no defense`` for the undefended arm."""

    schedule: str
    measured: Strength
    chosen: bool = False


def render_calibration(record: CalibrationRecord) -> str:
    """The whole page as one HTML document."""
    # Without the first style: it stands for no defense elsewhere.
    styled = dict(zip(record.schedules, styles(len(record.schedules) + 1)[1:], strict=True))
    metrics = _shown_metrics(record)
    return render_page(
        "calibrate",
        record,
        seeds=record.seeds,
        target=f"{LEAKAGE[record.target.metric].label} "
        f"{number(record.target.value, 2, LEAKAGE[record.target.metric].unit)}",
        charts=[_leakage_chart(record, metric) for metric in metrics] + [_cost_chart(record)],
        legend=[(name, legend_key(f"key{index}", style)) for index, (name, style) in enumerate(styled.items())],
        table=_table(record, metrics),
        metrics=[LEAKAGE[metric] for metric in metrics],
        setting=None if record.chosen is None else nested_text({"arms": record.chosen.arm}),
    )


def calibration_summary(record: CalibrationRecord) -> Table[tuple[str, ScheduleEntry]]:
    """For the terminal, for each schedule: where leakage is below the target, and what that costs."""

    def strength(value: float | None) -> str | None:
        return None if value is None else f"{value:g}"

    def cost(entry: ScheduleEntry) -> str | None:
        changes = {measured.strength: measured.f1_difference.mean for measured in entry.measurements}
        return None if entry.certain.holds is None else f"{changes[entry.certain.holds]:+.3f}"

    columns: tuple[Column[tuple[str, ScheduleEntry]], ...] = (
        Column("schedule", lambda row: row[0]),
        Column("surely below from", lambda row: strength(row[1].certain.holds)),
        Column("on average from", lambda row: strength(row[1].average.holds)),
        Column("surely not up to", lambda row: strength(row[1].leaks)),
        Column("measured", lambda row: str(len(row[1].measurements))),
        Column("macro F1, change", lambda row: cost(row[1])),
    )
    target = record.target
    return Table(f"Target: {target.metric} below {target.value:g}", columns, list(record.schedules.items()))


def _shown_metrics(record: CalibrationRecord) -> list[str]:
    """The target's metric first, then those that every setting was measured by."""
    target = record.target.metric
    everywhere = [
        metric
        for metric in record.mean_image
        if all(metric in each.leakage for entry in record.schedules.values() for each in entry.measurements)
    ]
    return [target, *(metric for metric in everywhere if metric != target)]


def _title(metric: str) -> str:
    shown = LEAKAGE[metric]
    return f"{shown.label}, {shown.unit}" if shown.unit else shown.label


def _series(record: CalibrationRecord, point: Callable[[Strength], Point]) -> list[Series]:
    chosen = record.chosen
    return [
        Series(
            name,
            tuple(point(measured) for measured in entry.measurements),
            style,
            chosen.strength if chosen is not None and chosen.schedule == name else None,
        )
        for (name, entry), style in zip(record.schedules.items(), styles(len(record.schedules) + 1)[1:], strict=True)
    ]


def _leakage_chart(record: CalibrationRecord, metric: str) -> Panel:
    def point(measured: Strength) -> Point:
        leaked = measured.leakage[metric]
        return Point(measured.strength, leaked.mean, (leaked.low, leaked.high))

    levels = [Level("mean image", record.mean_image[metric].mean, "dotted")]
    if metric == record.target.metric:
        levels.append(Level("target", record.target.value, "dashed", above=True))
    title = _title(metric)
    return Panel(title, strength_chart(f"leakage-{metric}", title, _series(record, point), levels))


def _cost_chart(record: CalibrationRecord) -> Panel:
    title = "Macro F1 on the test images"
    series = _series(record, lambda measured: Point(measured.strength, measured.mean_f1, None))
    level = Level("no defense", record.undefended.mean_f1, "dotted")
    return Panel(title, strength_chart("f1", title, series, [level]))


def _table(record: CalibrationRecord, metrics: Sequence[str]) -> Table[StrengthRow]:
    chosen = record.chosen
    rows = [StrengthRow("no defense", record.undefended)]
    for name, entry in record.schedules.items():
        for measured in entry.measurements:
            if measured.strength > 0:
                same = chosen is not None and (name, measured.strength) == (chosen.schedule, chosen.strength)
                rows.append(StrengthRow(name, measured, same))
    columns: tuple[Column[StrengthRow], ...] = (
        Column("Schedule", lambda row: f"{row.schedule} (chosen)" if row.chosen else row.schedule),
        Column("Strength", lambda row: f"{row.measured.strength:g}"),
        Column("Mean amplitude", lambda row: row.measured.mean_amplitude, 2),
        *(_leakage_column(metric) for metric in metrics),
        Column("Macro F1", lambda row: row.measured.mean_f1),
        Column("To no defense", lambda row: _signed(row.measured.f1_difference)),
    )
    return Table("Leakage (in the worst round) and macro F1", columns, rows, kind="scores")


def _leakage_column(metric: str) -> Column[StrengthRow]:
    def text(row: StrengthRow) -> str:
        leaked, digits = row.measured.leakage[metric], min(LEAKAGE[metric].digits, 2)
        return f"{with_interval(leaked.mean, (leaked.low, leaked.high), digits)} (round {leaked.round})"

    return Column(_title(metric), text)


def _signed(difference: Estimate) -> str:
    return signed_with_interval(difference.mean, difference.interval, 3)
