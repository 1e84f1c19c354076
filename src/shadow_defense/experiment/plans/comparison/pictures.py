"""One image of each model and attack, rebuilt under every defense."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from shadow_defense.data.dataset import ClientData
from shadow_defense.experiment.trial import Trial
from shadow_defense.report.records.comparison import ComparisonPictures


def pictures(trials: Mapping[str, Trial]) -> tuple[ComparisonPictures, ...]:
    """For each model, by name, and each attack one image under every defense, in the first attacked round."""
    shown = []
    for model, trial in trials.items():
        for attack in trial.config.attacks:
            round, client = trial.attacked_updates(attack)[0]
            rebuilt = _rebuilt(trial, attack, round, client)
            if rebuilt:
                shown.append(
                    ComparisonPictures(
                        model=model,
                        attack=attack,
                        round=round + 1,
                        client=client.name,
                        class_name=trial.dataset.class_names[int(client.train.labels[0])],
                        original=client.train.unit_images()[0],
                        rebuilt=rebuilt,
                    )
                )
    return tuple(shown)


def _rebuilt(trial: Trial, attack: str, round: int, client: ClientData) -> dict[str, Tensor]:
    """By arm, what was made of the client's first image: attacks return images in no telling order."""
    found = {}
    for scoring in trial.scorings_with_control:
        job = scoring.job
        here = (job.attack, job.round, job.client) == (attack, round, client.name)
        if here and not scoring.mean_image and trial.store.has(scoring):
            images = scoring.rebuilt(trial.store, scoring.load(trial.store))
            if client.train.sample_ids[0] in images:
                found[scoring.arm] = images[client.train.sample_ids[0]]
    return found
