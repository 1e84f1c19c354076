"""One scene of an experiment, in a store: the tasks that it takes, and what the risks read from their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.analysis import by_image
from shadow_defense.experiment.plans.risks.base import ATTACK
from shadow_defense.experiment.plans.risks.intervals import f1_difference
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.scene_tasks import check_whole, scorings_of, trainings_of
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.scoring import Score, Scoring
from shadow_defense.experiment.tasks.training import Training, predict
from shadow_defense.federated.batch_norm_policy import evaluable_state
from shadow_defense.federated.rounds import read_journal, state_folder, train_again
from shadow_defense.files import read_tensors
from shadow_defense.metrics.confidence import Estimate, mean_interval, paired_difference

Image = tuple[int, str, str]
"""What measurements are paired by: seed, client and sample id."""

Values = Mapping[Image, float]


class Trial:
    """A configuration whose arms are trained, and attacked where ``attacked``."""

    def __init__(self, config: RunConfig, store: Store, *, attacked: bool = True) -> None:
        self.config, self.store, self.attacked = config, store, attacked

    @cached_property
    def scene(self) -> Scene:
        return Scene(self.config)

    @cached_property
    def trainings(self) -> dict[str, Training]:
        return trainings_of(self.scene)

    @cached_property
    def scorings(self) -> list[Scoring]:
        return list(scorings_of(self.scene, self.trainings))

    @cached_property
    def scores(self) -> list[Score]:
        """Of the finished tasks."""
        return [scoring.load(self.store) for scoring in self.scorings]

    def check(self) -> None:
        """Raise what would stop it, before anything is computed."""
        if self.scene.shows_averages:
            raise ConfigError("the risks are measured on updates of single clients: take another engine")
        check_whole(self.scene)

    def tasks(self) -> Sequence[Task]:
        """What has to be computed."""
        return self.scorings if self.attacked else list(self.trainings.values())

    def final_f1(self, arm: str) -> float:
        """Macro F1 of an arm's final model on the test images."""
        return float(read_journal(self.store.place(self.trainings[arm]))[1][-1]["test"]["f1_macro"])

    def final_predictions(self, arm: str) -> Int64[Tensor, "n"]:
        """The classes that an arm's final model gives to the test images."""
        scene, folder = self.scene, self.store.place(self.trainings[arm])
        model, training = scene.new_model(arm), scene.config.training
        path = state_folder(folder, training.rounds) / "global.safetensors"
        state, _ = read_tensors(path, train_again(folder))
        share_bn = scene.config.arms[arm].share_bn
        model.load_state_dict(evaluable_state(model, state, share_bn, training.batch_norm, scene.dataset))
        return torch.argmax(predict(model, scene.dataset.test, scene.dataset.normalisation), dim=1)


Trials = Mapping[str, Trial]
"""The trials of one seed, by label."""


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
    return {
        (trial.config.seed, *image): metrics[column]
        for trial in trials
        for image, metrics in by_image(trial.scores, arm, attack, index).items()
        if column in metrics
    }


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


def f1_change(trials: Sequence[Trial], arm: str, reference: str) -> Estimate:
    """Macro F1 of one arm minus another's: over seeds where there are several, else over the test images."""
    if len(trials) > 1:
        values = [[trial.final_f1(name) for trial in trials] for name in (arm, reference)]
        return paired_difference(*values)
    (trial,) = trials
    test, classes = trial.scene.dataset.test, trial.scene.dataset.classes
    first, second = (trial.final_predictions(name) for name in (arm, reference))
    return f1_difference(first, second, test.labels, classes, trial.config.seed)
