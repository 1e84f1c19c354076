"""The scores that a comparison has so far, of all seeds together."""

from __future__ import annotations

from dataclasses import replace

from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.tasks.scoring import Score


def finished_scores(comparison: Comparison) -> dict[str, list[Score]]:
    """The scores of every finished attack and of the controls, by model; clients are named with their seed."""
    scores: dict[str, list[Score]] = {model: [] for model in comparison.grid.models}
    for model, scoring in comparison.scorings():
        if comparison.store.has(scoring):
            score = scoring.load(comparison.store)
            scores[model].append(replace(score, client=seeded(scoring.scene.config.seed, score.client)))
    return scores


def seeded(seed: int, client: str) -> str:
    """A client's name among those of all seeds: another seed's client of the same name has other images.

    >>> seeded(2, "client-1")
    'seed 2, client-1'
    """
    return f"seed {seed}, {client}"
