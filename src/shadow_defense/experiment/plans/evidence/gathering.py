"""From what a study has finished to ``evidence-<set>.json``, ``.csv``, ``.md``, its page, and the index of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.plans.comparison.gathering import gathered, pictures
from shadow_defense.experiment.plans.evidence.believing import believed
from shadow_defense.experiment.plans.evidence.leftover import left_by_size, sizes_of
from shadow_defense.experiment.plans.evidence.plan import Evidence, controls, predictings
from shadow_defense.experiment.plans.evidence.statistics import differences_of, settings_of
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.files import write_text
from shadow_defense.report.kit.plane import write_plane
from shadow_defense.report.pages.evidence import (
    evidence_markdown,
    evidence_numbers,
    render_evidence,
    result_table,
    setting_planes,
)
from shadow_defense.report.records.evidence import TEST_IMAGES, EvidenceRecord, Result
from shadow_defense.report.records.reading import write_record
from shadow_defense.report.sentences.evidence import answer


def write_evidence(evidence: Evidence, name: str, command: str) -> EvidenceRecord:
    """Gather what is there and write the files into the study's folder.

    Raises:
        RunError: when nothing is there yet.
    """
    scores, folder = evidence.scores(), evidence.folder
    left = left_by_size(evidence, scores)
    settings = settings_of(evidence, left)
    if not settings:
        failed = "; ".join(f"{cell}: {error}" for cell, error in evidence.failures.items())
        raise RunError(f"nothing of the study is finished yet{f' ({failed})' if failed else ''}: give it more time")
    record = EvidenceRecord(
        **vars(gathered(evidence, scores, command)),
        settings=settings,
        sizes=sizes_of(evidence, left),
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


def results_of(evidence: Evidence, scores: Mapping[str, Sequence[Score]]) -> list[Result]:
    """Every finished result that a number is computed from, with the arm, and what of the arm it measures."""
    found: list[Result] = []
    for model in evidence.grid.models:
        found += [*_tested(evidence, model), *_bounds(evidence, model), *_scored(evidence, model, scores[model])]
    return found


def _tested(evidence: Evidence, model: str) -> Iterator[Result]:
    for seed in evidence.grid.seeds_of(model):
        trial = evidence.trial(model, seed)
        for arm, task in {**predictings(trial), **controls(trial)}.items():
            if evidence.store.has(task):
                yield Result(model=model, arm=arm, seed=seed, by=TEST_IMAGES, task=task.name)


def _bounds(evidence: Evidence, model: str) -> Iterator[Result]:
    for (name, arm), bounding in evidence.bounds.items():
        if name == model and evidence.store.has(bounding):
            yield Result(model=model, arm=arm, seed=evidence.grid.seeds[0], by=bounding.way, task=bounding.name)


def _scored(evidence: Evidence, model: str, scores: Sequence[Score]) -> Iterator[Result]:
    arms = dict.fromkeys(score.arm for score in scores)
    counting = {_place(score) for arm in arms for score in believed([each for each in scores if each.arm == arm])}
    misfits = {_place(score): score.misfit for score in scores}
    for seed in evidence.grid.seeds_of(model):
        for scoring in evidence.trial(model, seed).scorings_with_control:
            job, place = scoring.job, (scoring.arm, seed, scoring.job.attack, scoring.job.round, scoring.job.client)
            if place in misfits:
                yield Result(
                    model=model,
                    arm=scoring.arm,
                    seed=seed,
                    by=job.attack,
                    task=scoring.name,
                    round=job.round + 1,
                    client=job.client,
                    misfit=misfits[place],
                    believed=place in counting,
                )


def _place(score: Score) -> tuple[str, int, str, int, str]:
    return score.arm, score.seed, score.attack, score.round, score.client
