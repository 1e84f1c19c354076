"""The page of the risks: for each its claim, what was found, a figure, a table, and how to see it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.charts import Curve, Level, Panel, Style, dot_chart, legend, line_chart, styles
from shadow_defense.report.kit.formatting import signed_with_interval
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.risks import Finding, RiskEntry, RisksRecord, Row
from shadow_defense.report.records.scores import MEAN_IMAGE
from shadow_defense.report.sentences.risks import OUTCOMES, WORDINGS, number_text, outcome_sentence

METHODS = {
    "plain": "Plain",
    "dp-sgd": "DP-SGD",
    "secure-sum": "Secure sum",
    "shadow": "Shadow, with its pseudo attack",
    "shadow-later": "Shadow, after its last pseudo attack",
}
"""Of the methods that risk 6 times."""


@dataclass(frozen=True)
class Layout:
    """What is shown of one risk's rows.

    Attributes:
        dots: by title the quantity of a chart, and its baseline.
        curves: by label a quantity over the rounds, which the rows are named by; the mean image's is a level.
    """

    columns: Sequence[Column[Row]]
    dots: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    curves: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One risk as it is laid out."""

    risk: RiskEntry
    number: str
    quantity: str
    outcome: str
    charts: tuple[Panel, ...]
    table: Table[Row]
    notes: list[str]


def render_risks(record: RisksRecord) -> str:
    """The whole page as one HTML document."""
    sections = [_section(risk) for risk in record.risks]
    return render_page(
        "risks",
        record,
        seeds=record.seeds,
        sections=sections,
        outcomes=OUTCOMES,
        forest=_forest(record.risks),
        farthest=FARTHEST,
    )


FARTHEST = 6.0
"""Half widths at which what lies farther off is drawn in the forest plot."""


def standing(finding: Finding) -> Estimate | None:
    """How far a finding is from what it would be were the claim wrong, in half widths of its interval.

    Beyond :data:`FARTHEST` it is held there; None without an interval, or with one of no width.

    >>> standing(Finding(value=Estimate(3.0, (1.0, 5.0), 9), rows=(), nothing=1.0))
    Estimate(mean=1.0, interval=(0.0, 2.0), count=9)
    """
    value = finding.value
    if value.interval is None or value.interval[0] == value.interval[1]:
        return None
    low, high = value.interval
    half = (high - low) / 2
    middle, ends = (
        (value.mean - finding.nothing) / half,
        ((low - finding.nothing) / half, (high - finding.nothing) / half),
    )
    shift = max(-FARTHEST, min(FARTHEST, middle)) - middle
    return Estimate(middle + shift, (ends[0] + shift, ends[1] + shift), value.count)


def _forest(risks: Sequence[RiskEntry]) -> Panel | None:
    """All claims at a glance; None where no finding has an interval."""
    found = {f"{risk.number}. {risk.name}": standing(risk.finding) for risk in risks}
    dots = {name: value for name, value in found.items() if value is not None}
    if not dots:
        return None
    title, looks = "All claims at a glance", styles(["none", *dots])
    return Panel(title, dot_chart("forest", title, dots, looks, Level("if the claim were wrong", 0.0)))


def _section(risk: RiskEntry) -> Section:
    finding, words = risk.finding, WORDINGS[risk.number]
    return Section(
        risk,
        number_text(risk.number, finding.value),
        words.quantity_of(finding),
        outcome_sentence(risk.outcome),
        _charts(risk.number, finding),
        Table(risk.name.capitalize(), LAYOUTS[risk.number].columns, finding.rows),
        words.notes_of(finding),
    )


def _level(title: str, quantity: str, digits: int, factor: float = 1.0) -> Column[Row]:
    def read(row: Row) -> Estimate | None:
        value = row.values.get(quantity)
        return None if value is None else _times(value, factor)

    return Column(title, read, digits)


def _change(title: str, quantity: str, digits: int, factor: float = 1.0) -> Column[Row]:
    def read(row: Row) -> str | None:
        value = row.values.get(quantity)
        if value is None:
            return None
        return signed_with_interval(_times(value, factor), digits)

    return Column(title, read)


def _times(value: Estimate, factor: float) -> Estimate:
    interval = None if value.interval is None else (factor * value.interval[0], factor * value.interval[1])
    return Estimate(factor * value.mean, interval, value.count)


PSNR_OF_ATTACK = "PSNR of the attack (dB)"

ARM, ROUND = Column[Row]("Arm", lambda row: row.name), Column[Row]("Round", lambda row: row.name)
PSNR, SSIM = _level("PSNR (dB)", "psnr", 2), _level("SSIM", "ssim", 3)

LAYOUTS: dict[int, Layout] = {
    1: Layout(
        (
            ARM,
            SSIM,
            _change("Change of SSIM", "ssim_difference", 3),
            PSNR,
            _change("Change of PSNR (dB)", "psnr_difference", 2),
            _level("Macro F1", "f1", 3),
            _change("Change of macro F1 (points)", "f1_difference", 1, 100.0),
        ),
        dots={
            "SSIM of the attack in the last round: lower is better protected": ("ssim", MEAN_IMAGE),
            "Change of macro F1 on the test images, against no defense": ("f1_difference", "no change"),
        },
    ),
    2: Layout((Column("Attack", lambda row: row.name), PSNR, SSIM), dots={PSNR_OF_ATTACK: ("psnr", MEAN_IMAGE)}),
    3: Layout((ROUND, PSNR, SSIM), curves={"no defense": "psnr"}),
    4: Layout(
        (
            ROUND,
            _level("PSNR (dB), fresh", "psnr_fresh", 2),
            _level("PSNR (dB), pre-trained", "psnr_pretrained", 2),
            _change("Difference (dB)", "psnr_difference", 2),
            _level("SSIM, fresh", "ssim_fresh", 3),
            _level("SSIM, pre-trained", "ssim_pretrained", 3),
            _change("Difference", "ssim_difference", 3),
        ),
        curves={"fresh": "psnr_fresh", "pre-trained": "psnr_pretrained"},
    ),
    5: Layout(
        (
            Column("Images of the client", lambda row: row.name),
            _change("PSNR above the mean image (dB)", "psnr", 2),
            _change("SSIM above the mean image", "ssim", 3),
            _level("Clients", "clients", 0),
            Column("Scored images", lambda row: str(row.values["psnr"].count)),
        ),
        dots={"PSNR above the mean image (dB), by the client's images": ("psnr", MEAN_IMAGE)},
    ),
    6: Layout(
        (
            Column("Method", lambda row: METHODS[row.name]),
            _level("Times the plain epoch", "ratio", 2),
            _level("Milliseconds an epoch", "seconds", 1, 1000.0),
            _level("Seconds an image, once before training", "preparing", 2),
        ),
        dots={"Time of a local epoch, as a multiple of the plain one": ("ratio", "Plain")},
    ),
    7: Layout(
        (
            Column("Map", lambda row: row.name),
            _level("Rank correlation", "rank", 3),
            _level("Error where it marks, over the mean", "marked", 2),
            Column("Images", lambda row: str(row.values["rank"].count)),
        ),
        dots={"Rank correlation with what the attack rebuilt": ("rank", "no relation")},
    ),
}
"""By the risk's number."""


def _charts(risk: int, finding: Finding) -> tuple[Panel, ...]:
    layout = LAYOUTS[risk]
    if layout.curves:
        return (_curves(f"risk{risk}", layout.curves, finding),)
    # One style a row, in all charts of the risk.
    looks = styles(METHODS.get(row.name, row.name) for row in finding.rows)
    return tuple(
        _dots(f"risk{risk}-{place}", title, quantity, baseline, finding, looks)
        for place, (title, (quantity, baseline)) in enumerate(layout.dots.items())
    )


def _dots(name: str, title: str, quantity: str, baseline: str, finding: Finding, looks: Mapping[str, Style]) -> Panel:
    """A row of the finding that the baseline names is its line; else the line is where nothing would be found."""
    values = {METHODS.get(row.name, row.name): row.values[quantity] for row in finding.rows if quantity in row.values}
    line = values.pop(baseline, Estimate(finding.nothing, None, 1))
    return Panel(title, dot_chart(name, title, values, looks, Level(baseline, line.mean)))


def _curves(name: str, curves: Mapping[str, str], finding: Finding) -> Panel:
    rounds, looks = [int(row.name) for row in finding.rows], styles(curves)
    drawn = [
        Curve(label, rounds, [row.values[quantity] for row in finding.rows], looks[label])
        for label, quantity in curves.items()
    ]
    svg = line_chart(name, PSNR_OF_ATTACK, drawn, [Level(MEAN_IMAGE, finding.facts[MEAN_IMAGE])])
    return Panel(PSNR_OF_ATTACK, svg, legend(name, looks))
