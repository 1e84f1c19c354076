"""From what a study has finished to ``evidence-<set>.json``, ``.csv``, ``.md``, its page, and the index of results."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.plans.comparison.gathering import gathered
from shadow_defense.experiment.plans.comparison.pictures import pictures
from shadow_defense.experiment.plans.evidence.index import results_of
from shadow_defense.experiment.plans.evidence.plan import Evidence
from shadow_defense.experiment.plans.evidence.statistics import differences_of, settings_of
from shadow_defense.files import write_text
from shadow_defense.report.kit.plane import write_plane
from shadow_defense.report.pages.evidence import (
    evidence_markdown,
    evidence_numbers,
    render_evidence,
    result_table,
    setting_planes,
)
from shadow_defense.report.records.evidence import EvidenceRecord
from shadow_defense.report.records.reading import write_record
from shadow_defense.report.sentences.evidence import answer


def write_evidence(evidence: Evidence, name: str, command: str) -> EvidenceRecord:
    """Gather what is there and write the files into the study's folder.

    Raises:
        RunError: when nothing is there yet.
    """
    scores, folder = evidence.scores(), evidence.folder
    settings = settings_of(evidence, scores)
    if not settings:
        failed = "; ".join(f"{cell}: {error}" for cell, error in evidence.failures.items())
        raise RunError(f"nothing of the study is finished yet{f' ({failed})' if failed else ''}: give it more time")
    record = EvidenceRecord(
        **vars(gathered(evidence, scores, command)),
        settings=settings,
        differences=differences_of(evidence, scores),
        missing=Counter(task.kind for task in evidence.remaining()),
        victims={str(size): count for size, count in evidence.grid.victims.counts.items()},
        audited=evidence.grid.audited,
    )
    results = f"evidence-{name}-results.csv"
    behind = f"The results behind each number are listed in {results}; each is a folder of the study's store."
    record = replace(
        record,
        notes=(*record.notes, behind),
        verdict=(*answer(record), *evidence.grid.remarks),
        attacked=record.verdict,
        tables=tuple(table for table in record.tables if table.rows),
    )
    write_record(folder / f"evidence-{name}.json", record)
    write_text(folder / f"evidence-{name}.csv", evidence_numbers(record).csv())
    write_text(folder / results, result_table(results_of(evidence, scores)).csv())
    write_text(folder / f"evidence-{name}.md", evidence_markdown(record))
    for model, plane in setting_planes(record).items():
        write_plane(folder / f"evidence-{name}-{model}.svg", plane, record.defenses)
    write_text(page_path(folder, name), render_evidence(record, pictures(evidence.first_trials())))
    return record


def page_path(folder: Path, name: str) -> Path:
    return folder / f"evidence-{name}.html"
