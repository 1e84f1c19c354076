"""What a comparison leaves in its folder: numbers, page, tables for documents, planes as pictures."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.plans.comparison.gathering import gather
from shadow_defense.experiment.plans.comparison.pictures import pictures
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.comparison.scores import finished_scores
from shadow_defense.files import write_text
from shadow_defense.report.kit.plane import write_plane
from shadow_defense.report.pages.compare import comparison_numbers, render_comparison
from shadow_defense.report.pages.compare_markdown import comparison_markdown
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.reading import write_record


def write_results(comparison: Comparison, command: str) -> ComparisonRecord:
    """Gather what is there and write comparison.json, .csv, .md, .html and a plane-*.svg for each model and attack.

    Raises:
        RunError: when no model has a finished reference to compare with.
    """
    scores = finished_scores(comparison)
    if not any(scores.values()):
        failed = "; ".join(f"{cell}: {error}" for cell, error in comparison.failures.items())
        raise RunError(f"no cell of the comparison could be computed ({failed}): correct the first and run it again")
    record, folder = gather(comparison, scores, command), comparison.folder
    write_record(folder / "comparison.json", record)
    write_text(folder / "comparison.csv", comparison_numbers(record).csv())
    write_text(folder / "comparison.md", comparison_markdown(record))
    for plane in record.planes:
        write_plane(folder / f"plane-{plane.model}-{plane.attack}.svg", plane, record.defenses)
    write_text(page_path(folder), render_comparison(record, pictures(comparison, scores)))
    return record


def page_path(folder: Path) -> Path:
    return folder / "comparison.html"
