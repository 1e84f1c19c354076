"""The page of a study: whether a setting does, every arm against the bars, then the comparison behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.columns import end_columns
from shadow_defense.report.kit.charts import Panel
from shadow_defense.report.kit.formatting import MISSING, markdown_text, number
from shadow_defense.report.kit.plane import plane_svg
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.pages.compare import comparison_markdown, render_comparison
from shadow_defense.report.records.comparison import ComparisonPictures, Plane, PlanePoint
from shadow_defense.report.records.evidence import (
    F1_LOST,
    FOUND,
    LEFT,
    TEST_IMAGES,
    Difference,
    EvidenceRecord,
    Left,
    OfSize,
    Result,
    Setting,
)
from shadow_defense.report.records.scores import MEAN_IMAGE

LEFTOVERS = ("left", "closest", "ssim", "found")
"""Measures of what is left of images; the others are on test images."""

SIGNS = {"met": "yes", "missed": "no", "open": "open"}


def _bars(setting: Setting) -> str:
    if not setting.known:
        return MISSING
    signs = {bar: SIGNS[outcome] for bar, outcome in setting.outcomes().items()}
    if setting.f1_lost is None:
        signs["f1"] = MISSING
    return ", ".join(signs.values())


def _by(setting: Setting) -> str | None:
    if setting.withheld:
        return "withheld: break not found"
    return None if setting.left is None else setting.left.by


def _of_images(left: Left) -> dict[str, Estimate | None]:
    return {"left": left.above, "closest": left.closest, "ssim": left.ssim, "found": left.found}


def measures(setting: Setting) -> dict[str, Estimate]:
    """Every number of a setting by name."""
    worth, left = setting.worth, setting.left
    found: dict[str, Estimate | None] = {
        "f1_lost": setting.f1_lost,
        "auroc_lost": setting.auroc_lost,
    }
    if worth is not None:
        found |= {"f1": worth.f1, "auroc": worth.auroc, "balanced": worth.balanced}
    if (both := setting.together) is not None:
        found |= {
            "auroc_added": both.auroc_added,
            "auroc_together": both.worth.auroc,
            "f1_together": both.worth.f1,
            "f1_lost_together": both.f1_lost,
        }
    if left is not None:
        found |= _of_images(left)
    return {name: value for name, value in found.items() if value is not None}


def _measure(title: str, name: str, digits: int = 3, about: str = "") -> Column[Setting]:
    return Column(title, lambda each: measures(each).get(name), digits, about=about)


NAMES: tuple[Column[Setting], ...] = (Column("Arm", lambda each: each.arm), Column("Model", lambda each: each.model))

ASKED: tuple[Column[Setting], ...] = (
    Column("F1, left, found", _bars, about="within the bar?"),
    _measure("F1 lost", "f1_lost", about=f"asked: at most {F1_LOST:g}"),
    _measure("Left (dB)", "left", 2, f"above the mean image; asked: at most {LEFT:g}"),
    _measure("Found", "found", about=f"asked: at most {FOUND:g}"),
    Column("By", _by),
)

BESIDE: tuple[Column[Setting], ...] = (
    _measure("In hindsight (dB)", "closest", 2, "the closest of all to each image"),
    _measure("Macro F1", "f1", about="threshold set on validation"),
    _measure("AUROC", "auroc"),
    _measure("AUROC lost", "auroc_lost", about="paired by training"),
    Column("F1 by seed", lambda each: " ".join(map(number, each.worth.f1_of_seeds)) if each.worth else None),
    _measure("Balanced accuracy", "balanced"),
    _measure("SSIM", "ssim"),
)

TOGETHER: tuple[Column[Setting], ...] = (
    _measure("AUROC added", "auroc_added", about="to the reading network's"),
    _measure("AUROC", "auroc_together"),
    _measure("Macro F1", "f1_together", about="threshold set on validation"),
    _measure("F1 lost", "f1_lost_together", about="against no defense and that network"),
)
"""Of an arm and the reading network, where both answer."""

FRONT: Column[Setting] = Column("Front", lambda each: "yes" if each.on_front else MISSING)
"""Where no star can mark it."""


def _sign(each: Difference) -> str:
    if each.shown:
        return "shown"
    of = "trainings" if each.measure == "f1_lost" else "images"
    return "not shown" if each.settled_by is None else f"not shown; {each.settled_by} {of}"


DIFFERENCE_COLUMNS: tuple[Column[Difference], ...] = (
    Column("Arm", lambda each: each.arm),
    Column("Model", lambda each: each.model),
    Column("By", lambda each: each.by),
    Column("Measure", lambda each: each.measure),
    Column("Difference", lambda each: each.difference),
    Column("Effect", lambda each: each.effect, 2, about="Cohen's d of the pairs"),
    Column("p", lambda each: each.p, 4, about="by bootstrap, adjusted by Holm"),
    Column(
        "Sign", _sign, about="by the adjusted p; what would show it at the same mean and spread, before the correction"
    ),
)


def setting_table(record: EvidenceRecord, title: str, columns: Sequence[Column[Setting]]) -> Table[Setting]:
    """Every arm by some of its numbers."""

    def mark(each: Setting) -> str:
        return "front" if each.on_front else ""

    return Table(title, (*NAMES, *columns), record.settings, "scores", mark=mark)


def together_table(record: EvidenceRecord) -> list[Table[Setting]]:
    """Every arm where the reading network answers too; none without one."""
    asked = [each for each in record.settings if each.together is not None]
    title = "Together with the reading network"
    return [Table(title, (*NAMES, *TOGETHER), asked, "scores")] if asked else []


SIZE_COLUMNS: tuple[Column[OfSize], ...] = (
    Column("Arm", lambda each: each.arm),
    Column("Model", lambda each: each.model),
    Column("Images of the client", lambda each: each.size, 0),
    Column("Left (dB)", lambda each: each.left.above, 2, about="above the mean image, by attacks"),
    Column("Found", lambda each: each.left.found),
    Column("SSIM", lambda each: each.left.ssim),
    Column("Rebuilt", lambda each: each.left.above.count, 0, about="images"),
    Column("By", lambda each: each.left.by),
)


def size_table(record: EvidenceRecord) -> list[Table[OfSize]]:
    """What attacks left by the size of the client; none where all victims have one."""
    return [Table("By the size of the client", SIZE_COLUMNS, record.sizes, "scores")] if record.sizes else []


def difference_table(record: EvidenceRecord) -> Table[Difference]:
    """Every arm against the first."""
    return Table(f"Against {record.first}, paired by image", DIFFERENCE_COLUMNS, record.differences, "scores")


def setting_planes(record: EvidenceRecord) -> dict[str, Plane]:
    """By model what is left of images above the mean image, which lies at 0 dB, against macro F1."""
    points: dict[str, list[PlanePoint]] = {}
    for each in record.settings:
        if each.worth and each.left:
            point = PlanePoint(arm=each.arm, privacy=each.left.above, utility=each.worth.f1, on_front=each.on_front)
            points.setdefault(each.model, []).append(point)
    mean = {MEAN_IMAGE: 0.0}
    return {
        model: Plane(model=model, attack="what is left", metric="psnr_whole", points=tuple(own), baseline=mean)
        for model, own in points.items()
    }


def render_evidence(record: EvidenceRecord, pictures: Sequence[ComparisonPictures] = ()) -> str:
    """The whole page as one HTML document. Raises as :func:`render_comparison`."""
    # In two, since one is wider than paper.
    settings = [
        setting_table(record, "Every arm against the three bars", ASKED),
        setting_table(record, "Beside the bars", BESIDE),
        *together_table(record),
        *size_table(record),
    ]
    planes = [
        Panel(f"{model}: PSNR above the mean image against macro F1", plane_svg(f"left{place}", plane, record.defenses))
        for place, (model, plane) in enumerate(setting_planes(record).items())
    ]
    differences = difference_table(record)
    return render_comparison(
        record, pictures, "evidence", occasion="Evidence", left=planes, settings=settings, differences=differences
    )


def _markdown(tables: Sequence[Table[Any]]) -> Iterator[str]:
    for each in tables:
        yield f"## {each.title}"
        yield replace(each, title="").markdown()


def evidence_markdown(record: EvidenceRecord) -> str:
    """The same as GitHub Markdown, for docs/results."""
    sizes = ", ".join(f"{count} of {size}" for size, count in record.victims.items())
    return comparison_markdown(
        record,
        [
            "## Settings",
            f"Left: of {record.audited} protected images of the first seed what the closest of all removers makes of "
            "each (worst case); of other arms what a malicious server reads of as many, or the attacks rebuilt of the "
            f"victims' images (of each seed, by the images of the client: {sizes}), each update's by the attack that "
            "explains it best, in the round and at the size that left most. In hindsight: the closest of all to each "
            "image. Intervals: 95 %, bootstrap over images within seeds, of F1 over seeds too; AUROC and balanced "
            "accuracy: over seeds; found: Clopper and Pearson.",
            setting_table(record, "", (*ASKED, *BESIDE, FRONT)).markdown(),
            *_markdown(together_table(record)),
            *_markdown(size_table(record)),
            "## Differences",
            difference_table(record).markdown(),
            "## What the attacks say",
            "\n".join(f"- {markdown_text(sentence)}" for sentence in record.attacked),
        ],
    )


@dataclass(frozen=True)
class Number:
    """One number of one arm."""

    model: str
    arm: str
    measure: str
    by: str
    value: Estimate


NUMBER_COLUMNS: tuple[Column[Number], ...] = (
    Column("model", lambda each: each.model),
    Column("arm", lambda each: each.arm),
    Column("measure", lambda each: each.measure),
    Column("by", lambda each: each.by),
    *end_columns(lambda each: each.value),
    Column("images", lambda each: each.value.count),
)


def evidence_numbers(record: EvidenceRecord) -> Table[Number]:
    """Every number of the settings and differences, one a row, for CSV and data frames."""
    rows = [
        Number(each.model, each.arm, name, (_by(each) or "") if name in LEFTOVERS else TEST_IMAGES, value)
        for each in record.settings
        for name, value in measures(each).items()
    ]
    for of in record.sizes:
        by = f"{of.left.by}, clients of {of.size}"
        known = _of_images(of.left).items()
        rows += [Number(of.model, of.arm, name, by, value) for name, value in known if value is not None]
    for each in record.differences:
        rows.append(Number(each.model, each.arm, f"{each.measure}_difference", each.by, each.difference))
    return Table("", NUMBER_COLUMNS, rows)


RESULT_COLUMNS: tuple[Column[Result], ...] = (
    Column("model", lambda each: each.model),
    Column("arm", lambda each: each.arm),
    Column("by", lambda each: each.by),
    Column("seed", lambda each: each.seed),
    Column("round", lambda each: each.round),
    Column("client", lambda each: each.client),
    Column("misfit", lambda each: each.misfit),
    Column("believed", lambda each: "yes" if each.believed else None),
    Column("task", lambda each: each.task),
)


def result_table(results: Sequence[Result]) -> Table[Result]:
    """The results behind the numbers, one a row, for CSV."""
    return Table("", RESULT_COLUMNS, results)
