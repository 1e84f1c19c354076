"""The task of what a finished training says of every test image, with a threshold set on validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from shadow_defense.data.dataset import FederatedDataset, Normalisation, concatenated
from shadow_defense.errors import DataError
from shadow_defense.experiment.provenance import code_hash
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import SCORE_CODE, key_of
from shadow_defense.experiment.tasks.training import Training, final_model
from shadow_defense.metrics.utility import classify
from shadow_defense.progress import Progress


@dataclass(frozen=True)
class Predicted:
    """What a model says of each test image.

    Attributes:
        labels, called: the class that an image has, and that the model calls it: at ``threshold`` where there are two
            classes, else the most probable one.
        probabilities: of each class, by image.
        threshold: of class 1, for the greatest macro F1 on the clients' validation images.
    """

    labels: tuple[int, ...]
    called: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]
    threshold: float | None


@dataclass(frozen=True, eq=False)
class Predicting(RecordTask[Predicted]):
    """The final model of a training on every test image."""

    training: Training

    kind = "predicted"
    file = "predicted.json"
    record = Predicted

    @cached_property
    def key(self) -> str:
        return key_of(code_hash(*SCORE_CODE, "experiment/tasks/predicting.py"), self.training.key)

    @property
    def about(self) -> str:
        return f"seed {self.training.scene.config.seed}, {self.training.arm}: test images"

    def describe(self) -> Mapping[str, object]:
        return {"training": self.training.name}

    def needs(self) -> Sequence[Task]:
        return [self.training]

    def compute(self, store: Store, progress: Progress) -> None:
        scene = self.training.scene
        model = final_model(scene, self.training.arm, store.place(self.training))
        self.save(store, predicted_by(model, scene.dataset, scene.dataset.normalisation))


def predicted_by(model: nn.Module, data: FederatedDataset, normalisation: Normalisation) -> Predicted:
    """Of a model that reads images so normalised. Raises :class:`DataError` without test images."""
    if len(data.test) == 0:
        raise DataError("no test images to measure utility on: raise data.test_fraction")
    called = classify(model, data.test, concatenated([each.validation for each in data.clients]), normalisation)
    rows = tuple(tuple(row) for row in called.probabilities.tolist())
    labels, classes = tuple(data.test.labels.tolist()), tuple(called.classes.tolist())
    return Predicted(labels, classes, rows, called.threshold)
