"""What a comparison leaves in its folder: numbers, page, tables for documents, planes as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shadow_defense.errors import RunError
from shadow_defense.experiment.comparison.cell_scores import score_cells
from shadow_defense.experiment.comparison.gathering import gather
from shadow_defense.experiment.comparison.pictures import pictures
from shadow_defense.experiment.comparison.running import Comparison
from shadow_defense.files import write_json, write_text
from shadow_defense.progress import Progress
from shadow_defense.report.comparison_content import ComparisonContent
from shadow_defense.report.kit.plane import plane_svg_file
from shadow_defense.report.pages.compare import write_comparison
from shadow_defense.report.pages.compare_csv import comparison_csv
from shadow_defense.report.pages.compare_markdown import markdown_tables
from shadow_defense.report.sentences.comparison import verdict


def write_results(comparison: Comparison, command: str, progress: Progress | None = None) -> dict[str, Any]:
    """Score what is there and write comparison.json, .csv, .md, .html and a plane-*.svg for each model and attack.

    Raises:
        RunError: when no model has a finished reference to compare with.
    """
    scores = score_cells(comparison, progress)
    if not any(scores.values()):
        failed = "; ".join(f"{cell}: {error}" for cell, error in comparison.failures.items())
        raise RunError(f"no cell of the comparison could be computed ({failed}): mend the first and run it again")
    results = gather(comparison, scores, command)
    results["verdict"] = verdict(results)
    folder = comparison.folder
    write_json(folder / "comparison.json", results)
    write_text(folder / "comparison.csv", comparison_csv(results))
    write_text(folder / "comparison.md", markdown_tables(results))
    for plane in results["planes"]:
        plane_svg_file(folder / f"plane-{plane['model']}-{plane['attack']}.svg", plane, results["defenses"])
    write_comparison(page_path(folder), ComparisonContent(results, pictures(comparison, scores)))
    return results


def page_path(folder: Path) -> Path:
    return folder / "comparison.html"
