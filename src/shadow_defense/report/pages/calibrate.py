"""The page of a calibration: leakage against strength, the chosen setting to paste, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.recognition import recognition
from shadow_defense.report.kit.charts import Curve, Level, Panel, Style, legend, line_chart, styles
from shadow_defense.report.kit.formatting import number, signed_with_interval, with_interval
from shadow_defense.report.kit.metrics import METRICS
from shadow_defense.report.kit.pictures import picture
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import nested_text, render_page
from shadow_defense.report.pages.run_pictures import THUMBNAIL, Tile
from shadow_defense.report.records.calibration import CalibrationRecord, Film, Frame, ScheduleEntry, Strength


@dataclass(frozen=True)
class StrengthRow:
    """One measured setting of the table; ``schedule`` is ``no defense`` for the undefended arm."""

    schedule: str
    measured: Strength
    chosen: bool = False


def render_calibration(record: CalibrationRecord, film: Film | None = None) -> str:
    """The whole page as one HTML document; ``film``: one image over the strengths.

    Raises:
        DataError: when its images have neither one nor three channels.
    """
    metrics, target = _shown_metrics(record), METRICS[record.target.metric]
    return render_page(
        "calibrate",
        record,
        seeds=record.seeds,
        target=f"{target.label} {number(record.target.value, 2, target.unit)}",
        charts=[*(_leakage_chart(record, metric) for metric in metrics), _cost_chart(record)],
        legend=legend("schedule", _looks(record)),
        table=_table(record, metrics),
        metrics=[METRICS[metric] for metric in metrics],
        film=film,
        strips={} if film is None else _strips(film, record),
        setting=None if record.chosen is None else nested_text({"arms": record.chosen.arm}),
    )


def _strips(film: Film, record: CalibrationRecord) -> dict[str, list[Tile]]:
    """By schedule the original, the image at each strength, and the mean image."""
    chosen = record.chosen
    ends = (
        Tile(picture(film.original, "Original", f"Original image of {film.client}", "never sent", least=THUMBNAIL)),
        Tile(picture(film.mean_image, "Mean image", "Mean of public images", "known to all", least=THUMBNAIL)),
    )

    def frame(schedule: str, each: Frame) -> Tile:
        is_chosen = chosen is not None and (chosen.schedule, chosen.strength) == (schedule, each.strength)
        title = f"{each.strength:g}" if each.strength else "No defense"
        described = f"Image of {film.client} rebuilt at strength {each.strength:g}"
        lines = (f"SSIM {number(each.ssim, 2)}, round {each.round}", *(("chosen",) if is_chosen else ()))
        drawn = picture(each.rebuilt, title, described, *lines, least=THUMBNAIL)
        return Tile(drawn, recognition(each.ssim, film.mean_image_ssim))

    return {
        schedule: [ends[0], *(frame(schedule, each) for each in frames), ends[1]]
        for schedule, frames in film.strips.items()
    }


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


def _looks(record: CalibrationRecord) -> dict[str, Style]:
    # The first style stands for no defense elsewhere.
    looks = styles(["no defense", *record.schedules])
    return {name: looks[name] for name in record.schedules}


def _curves(record: CalibrationRecord, value: Callable[[Strength], Estimate]) -> list[Curve]:
    chosen, looks = record.chosen, _looks(record)
    return [
        Curve(
            name,
            [measured.strength for measured in entry.measurements],
            [value(measured) for measured in entry.measurements],
            looks[name],
            chosen.strength if chosen is not None and chosen.schedule == name else None,
        )
        for name, entry in record.schedules.items()
    ]


def _chart(name: str, title: str, curves: Sequence[Curve], levels: Sequence[Level]) -> Panel:
    return Panel(title, line_chart(name, title, curves, levels, along="strength"))


def _leakage_chart(record: CalibrationRecord, metric: str) -> Panel:
    levels = [Level("mean image", record.mean_image[metric].mean, "dotted")]
    if metric == record.target.metric:
        levels.append(Level("target", record.target.value, above=True))
    curves = _curves(record, lambda measured: measured.leakage[metric].estimate)
    return _chart(f"leakage-{metric}", METRICS[metric].title, curves, levels)


def _cost_chart(record: CalibrationRecord) -> Panel:
    curves = _curves(record, lambda measured: Estimate(measured.mean_f1, None, len(measured.f1)))
    level = Level("no defense", record.undefended.mean_f1, "dotted")
    return _chart("f1", "Macro F1 on the test images", curves, [level])


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
        Column("Change of macro F1", lambda row: signed_with_interval(row.measured.f1_difference)),
    )
    return Table("Leakage (in the worst round) and macro F1", columns, rows, kind="scores")


def _leakage_column(metric: str) -> Column[StrengthRow]:
    digits = min(METRICS[metric].digits, 2)

    def text(row: StrengthRow) -> str:
        leaked = row.measured.leakage[metric]
        return f"{with_interval(leaked.estimate, digits)} (round {leaked.round})"

    return Column(METRICS[metric].title, text)
