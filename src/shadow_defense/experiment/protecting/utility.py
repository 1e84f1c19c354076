"""What a model is worth that was trained on a data set as it was written."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import nn
from torch.nn.functional import one_hot

from shadow_defense.data.dataset import Normalisation, Parts, measure_normalisation
from shadow_defense.errors import DataError
from shadow_defense.metrics.utility import classify, probabilities_of, utility
from shadow_defense.models.settings import ModelSettings
from shadow_defense.placement import CPU
from shadow_defense.protection.directions import EPOCHS, train_classifier

SMALL = ModelSettings(name="convnet", normalisation="group", activation="gelu", width=16)


class Worth(TypedDict):
    """Scores on the test part: macro F1 of the most probable class and, of two classes, at the threshold of the
    greatest F1 on the validation part, where there is one; area under the ROC curve."""

    f1: float
    f1_threshold: float | None
    auc: float | None


def worth_of(
    parts: Parts, *, seed: int, settings: ModelSettings = SMALL, epochs: int = EPOCHS, device: torch.device = CPU
) -> Worth:
    """Train on the training part as it is, with its own normalisation, and test on the others as they are.

    Raises:
        DataError: without a test part, or with training images of one class.
    """
    normalisation = measure_normalisation(parts.train)
    train = parts.train
    model = train_classifier(
        train.unit_images(), train.labels, normalisation, seed=seed, settings=settings, epochs=epochs, device=device
    )
    return worth_of_model(model, normalisation, parts)


def worth_of_model(model: nn.Module, normalisation: Normalisation, parts: Parts) -> Worth:
    """Of a model, on the validation and test parts as they are.

    Raises:
        DataError: without a test part.
    """
    if parts.test is None:
        raise DataError("utility needs a test part: give a source that has one")
    known = parts.validation
    validated = None if known is None else (probabilities_of(model, known, normalisation), known.labels)
    called = classify(probabilities_of(model, parts.test, normalisation), validated)
    scores = utility(called.probabilities, parts.test.labels)
    worth = Worth(f1=_number(scores["f1_macro"]), f1_threshold=None, auc=scores["auroc"])
    if called.threshold is not None:
        moved = utility(one_hot(called.classes, 2).double(), parts.test.labels)
        worth["f1_threshold"] = moved["f1_macro"]
    return worth


def _number(score: float | None) -> float:
    assert score is not None
    return score
