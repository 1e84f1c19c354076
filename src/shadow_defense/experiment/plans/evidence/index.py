"""Which finished results are behind which number of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shadow_defense.experiment.plans.evidence.believing import believed
from shadow_defense.experiment.plans.evidence.plan import Evidence, predictings
from shadow_defense.experiment.tasks.predicting import Predicting
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.report.records.evidence import PUBLIC_ALONE, TEST_IMAGES, WORST_CASE, Result


def results_of(evidence: Evidence, scores: Mapping[str, Sequence[Score]]) -> list[Result]:
    """Every finished result that a number is computed from, with the arm, and what of the arm it measures."""
    found: list[Result] = []
    for model in evidence.grid.models:
        found += [*_tested(evidence, model), *_bounds(evidence, model), *_scored(evidence, model, scores[model])]
    return found


def _tested(evidence: Evidence, model: str) -> Iterator[Result]:
    for seed in evidence.grid.seeds_of(model):
        trial = evidence.trial(model, seed)
        tested: dict[str, Sequence[Predicting]] = {
            **{arm: [each] for arm, each in predictings(trial).items()},
            PUBLIC_ALONE: evidence.public_alone(trial),
        }
        for arm, tasks in tested.items():
            for task in tasks:
                if evidence.store.has(task):
                    yield Result(model=model, arm=arm, seed=seed, by=TEST_IMAGES, task=task.name)


def _bounds(evidence: Evidence, model: str) -> Iterator[Result]:
    for (name, arm), bounding in evidence.bounds.items():
        if name == model and evidence.store.has(bounding):
            yield Result(model=model, arm=arm, seed=evidence.grid.seeds[0], by=WORST_CASE, task=bounding.name)


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
