"""The task of what a finished training says of every test image, with a threshold set on validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from shadow_defense.data.dataset import FederatedDataset, Normalisation, concatenated
from shadow_defense.errors import DataError
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.training import Training, final_model
from shadow_defense.metrics.utility import classify, probabilities_of
from shadow_defense.models.together import together, weight
from shadow_defense.progress import Progress

LEAST_PROBABILITY = 1e-9
"""Below which answers are taken for equally sure: some are 0 in double precision."""


@dataclass(frozen=True)
class Predicted:
    """What a model says of each test image.

    Attributes:
        labels, called: the class that an image has, and that the model calls it: at ``threshold`` where there are two
            classes, else the most probable one.
        probabilities: of each class, by image.
        threshold: of class 1, for the greatest macro F1 on the clients' validation images.
        validated, validated_labels: the probabilities of those, and the classes that they have.
    """

    labels: tuple[int, ...]
    called: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]
    threshold: float | None
    validated: tuple[tuple[float, ...], ...]
    validated_labels: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Predicting(RecordTask[Predicted]):
    """The final model of a training on every test image."""

    training: Training

    kind = "predicted"
    file = "predicted.json"
    record = Predicted

    def decided_by(self) -> Mapping[str, object]:
        return {"code": code_hash(__name__), "training": self.training.name}

    @property
    def about(self) -> str:
        return f"seed {self.training.scene.config.seed}, {self.training.arm}: test images"

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
    validation = concatenated([each.validation for each in data.clients])
    said = [probabilities_of(model, images, normalisation) for images in (data.test, validation)]
    return _predicted(said[0], data.test.labels, said[1], validation.labels)


def asked_together(first: Predicted, second: Predicted) -> Predicted:
    """What two models say together (:mod:`shadow_defense.models.together`), weighed by the validation images."""
    assert (first.labels, first.validated_labels) == (second.labels, second.validated_labels)
    known = [_log(each.validated) for each in (first, second)]
    weights = [weight(each) for each in known]
    tested = together([_log(each.probabilities) for each in (first, second)], weights)
    return _predicted(
        tested.softmax(dim=1),
        torch.tensor(first.labels),
        together(known, weights).softmax(dim=1),
        torch.tensor(first.validated_labels),
    )


def _log(probabilities: Sequence[Sequence[float]]) -> Float64[Tensor, "n classes"]:
    return torch.tensor(probabilities, dtype=torch.float64).clamp_min(LEAST_PROBABILITY).log()


def _predicted(
    tested: Float64[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
    validated: Float64[Tensor, "v classes"],
    validated_labels: Int64[Tensor, " v"],
) -> Predicted:
    called = classify(tested, (validated, validated_labels))
    return Predicted(
        labels=tuple(labels.tolist()),
        called=tuple(called.classes.tolist()),
        probabilities=_rows(tested),
        threshold=called.threshold,
        validated=_rows(validated),
        validated_labels=tuple(validated_labels.tolist()),
    )


def _rows(values: Float64[Tensor, "n classes"]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())
