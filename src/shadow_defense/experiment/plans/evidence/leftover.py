"""What the attacks that are believed left of victims' images, by how many images their client has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from shadow_defense.data.dataset import concatenated
from shadow_defense.experiment.plans.evidence.believing import attacked
from shadow_defense.experiment.plans.evidence.plan import Evidence, base_of
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.metrics.contrasts import within_seeds
from shadow_defense.metrics.intervals import share_interval
from shadow_defense.metrics.linkage import hits
from shadow_defense.report.kit.formatting import listed
from shadow_defense.report.records.evidence import Left, OfSize

BySize = Mapping[int, Left]
"""What is left by how many images a client has, of the sizes of which something is scored."""


def left_by_size(evidence: Evidence, scores: Mapping[str, Sequence[Score]]) -> dict[tuple[str, str], BySize]:
    """By model and arm."""
    return {
        (model, arm): _by_size(evidence, model, scores[model], arm)
        for model, trial in evidence.first_trials().items()
        for arm in trial.config.arms
    }


def sizes_of(evidence: Evidence, left: Mapping[tuple[str, str], BySize]) -> tuple[OfSize, ...]:
    """Of every arm that is attacked, where victims are of several sizes."""
    if len(evidence.grid.victims.counts) == 1:
        return ()
    return tuple(
        OfSize(model=model, arm=arm, size=size, left=own)
        for (model, arm), sizes in left.items()
        for size, own in sizes.items()
    )


def most_left(evidence: Evidence, sizes: BySize) -> Left | None:
    """At clients of the size that leaks most: of all images together those of the largest clients would decide."""
    if not sizes:
        return None
    size, left = max(sizes.items(), key=lambda each: each[1].above.mean)
    return left if len(evidence.grid.victims.counts) == 1 else replace(left, by=f"{left.by}, clients of {size}")


def _by_size(evidence: Evidence, model: str, scores: Sequence[Score], arm: str) -> BySize:
    clients = {client.name: len(client.train) for client in evidence.first_trials()[model].dataset.clients}
    found = {}
    for size in sorted(evidence.grid.victims.counts):
        left = _left(evidence, model, [score for score in scores if clients[score.client] == size], arm)
        if left is not None:
            found[size] = left
    return found


def _left(evidence: Evidence, model: str, scores: Sequence[Score], arm: str) -> Left | None:
    """By the attacks that are believed, in the round that left most of the arm's images on average."""
    left = attacked(scores, arm)
    if left is None:
        return None
    by = Counter(score.attack for score in left.scores)
    names = listed([f"{attack} ({count})" for attack, count in by.items()] if len(by) > 1 else list(by))
    found, gallery = _found_again(evidence, model, arm, left.scores)
    return Left(
        by=f"{names}, round {left.round + 1}",
        above=within_seeds(left.above),
        ssim=within_seeds(left.similar),
        found=share_interval(found),
        gallery=gallery,
        closest=within_seeds(left.closest),
    )


def _found_again(evidence: Evidence, model: str, arm: str, scores: Sequence[Score]) -> tuple[list[float], int]:
    """Of each rebuilt image whether its own is the nearest of all clients' images, and how many those are."""
    found: list[float] = []
    count = 0
    wanted = {(score.seed, Job(arm, score.attack, score.round, score.client)): score for score in scores}
    for seed in evidence.grid.seeds_of(model):
        trial = evidence.trial(model, seed)
        everybody = concatenated([client.train for client in base_of(trial).dataset.clients])
        gallery, count = everybody.unit_images().flatten(1), len(everybody)
        places = {sample: place for place, sample in enumerate(everybody.sample_ids)}
        for scoring in trial.scorings:
            score = None if scoring.mean_image else wanted.get((seed, scoring.job))
            if score is not None:
                rebuilt = scoring.rebuilt(evidence.store, score)
                distances = torch.cdist(torch.stack(list(rebuilt.values())).flatten(1), gallery)
                found += hits(-distances, torch.tensor([places[sample] for sample in rebuilt])).tolist()
    return found, count
