"""What the experiments read from the results of their trials, seed by seed and image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from shadow_defense.experiment.analysis import Image, by_image
from shadow_defense.experiment.plans.risks.risk import ATTACK
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.experiment.tasks.training import final_model
from shadow_defense.experiment.trial import Trial
from shadow_defense.metrics.confidence import Estimate, mean_interval, paired_difference
from shadow_defense.metrics.intervals import f1_difference
from shadow_defense.metrics.utility import predict

Values = Mapping[Image, float]


@lru_cache(maxsize=64)
def scores_of(trial: Trial) -> list[Score]:
    """Of a finished trial, read once for all that is measured on them."""
    return trial.scores()


def image_values(
    trials: Sequence[Trial], arm: str, column: str, *, attack: str = ATTACK, round: int | None = None
) -> dict[Image, float]:
    """A column of the scores for each image; the mean over its attacked rounds, or that of one ``round``.

    Args:
        trials: one a seed.
        column: such as ``psnr_whole``.
        round: counted from 1, as people do.
    """
    index = None if round is None else round - 1
    found = by_image([score for trial in trials for score in scores_of(trial)], arm, attack, index)
    return {image: metrics[column] for image, metrics in found.items() if column in metrics}


def mean_of(values: Values) -> Estimate:
    """The mean over images."""
    return mean_interval(list(values.values()))


def differences(first: Values, second: Values) -> dict[Image, float]:
    """``first - second`` for the images that both have."""
    return {image: value - second[image] for image, value in first.items() if image in second}


def mean_over(tables: Sequence[Values]) -> dict[Image, float]:
    """The mean over several measurements of each image, for the images that all have."""
    common = [image for image in tables[0] if all(image in table for table in tables)]
    return {image: sum(table[image] for table in tables) / len(tables) for image in common}


def final_f1(trial: Trial, arm: str) -> float:
    """Macro F1 of an arm's final model on the test images."""
    return float(trial.history(arm)[-1].test["f1_macro"] or 0.0)


def f1_change(trials: Sequence[Trial], arm: str, reference: str) -> Estimate:
    """Macro F1 of one arm minus another's: over seeds where there are several, else over the test images."""
    if len(trials) > 1:
        values = [[final_f1(trial, name) for trial in trials] for name in (arm, reference)]
        return paired_difference(*values)
    (trial,) = trials
    data = trial.dataset
    models = [final_model(trial, name, trial.store.place(trial.trainings[name])) for name in (arm, reference)]
    first, second = (predict(model, data.test, data.normalisation).argmax(dim=1) for model in models)
    return f1_difference(first, second, data.test.labels, data.classes, trial.config.seed)
