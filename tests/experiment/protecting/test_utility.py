"""What a model is worth for its task, on images whose class a bright square tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.errors import DataError
from shadow_defense.experiment.protecting.utility import worth_of
from tests.experiment.protecting.conftest import labelled


def images(count: int, seed: int) -> ImageSet:
    pixels, labels = labelled(count, seed)
    names = tuple(map(str, range(count)))
    return ImageSet(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels)[:, 0], names)


@pytest.mark.slow
def test_labels_that_say_nothing_are_worth_nothing() -> None:
    parts = Parts(images(120, 1), images(60, 2), images(200, 3), ("well", "ill"))
    told = worth_of(parts, seed=0)
    assert told["auc"] is not None
    assert told["auc"] > 0.95
    assert told["f1_threshold"] is not None
    assert min(told["f1"], told["f1_threshold"]) > 0.85
    turned = replace(parts, train=replace(parts.train, labels=1 - parts.train.labels))
    assert (worth_of(turned, seed=0)["auc"] or 0.0) < 0.05


def test_utility_needs_something_to_test_on() -> None:
    with pytest.raises(DataError, match="needs a test part"):
        worth_of(Parts(images(20, 1), images(20, 2), None, ("well", "ill")), seed=0)
